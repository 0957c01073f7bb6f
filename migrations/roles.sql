-- SPDX-License-Identifier: Apache-2.0
-- The database roles of a marketplace on PostgreSQL. Run once per server by somebody who may create roles:
--
--     marketplace database roles | psql -h HOST -U ADMIN postgres
--
-- The two groups say what may be done; the migrations grant them their rights. The three logins are what the
-- settings name. Give them passwords or certificates (\password marketplace_office) and a database:
--
--     CREATE DATABASE marketplace OWNER marketplace_migrator;
--     REVOKE ALL ON DATABASE marketplace FROM PUBLIC;
--     GRANT CONNECT ON DATABASE marketplace TO marketplace_application, marketplace_decider;
--
-- Running it again changes nothing.

DO $$
DECLARE
    wanted text;
BEGIN
    -- groups: rights, no login
    FOREACH wanted IN ARRAY ARRAY['marketplace_application', 'marketplace_decider'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE 'CREATE ROLE ' || quote_ident(wanted) || ' NOLOGIN';
        END IF;
    END LOOP;
    -- logins: the owner of the tables, the office, and a reader of what is published
    FOREACH wanted IN ARRAY ARRAY['marketplace_migrator', 'marketplace_office', 'marketplace_reader'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE 'CREATE ROLE ' || quote_ident(wanted) || ' LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS';
        END IF;
    END LOOP;
    GRANT marketplace_application TO marketplace_office;
    GRANT marketplace_decider TO marketplace_reader;
END
$$;
