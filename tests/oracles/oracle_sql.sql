-- SPDX-License-Identifier: Apache-2.0
-- The rules of deciding as set queries over many worlds at once; w numbers the world. Runs on SQLite and
-- PostgreSQL. {text} is a column type that compares by bytes, {names} concatenates keys in their order.

-- name: schema
CREATE TEMPORARY TABLE term (scheme {text}, id {text});
CREATE TEMPORARY TABLE parent (scheme {text}, id {text}, parent {text});
CREATE TEMPORARY TABLE above (scheme {text}, id {text}, top {text}, PRIMARY KEY (scheme, id, top));
CREATE TEMPORARY TABLE action (id {text}, hosted INT, derivatives INT, distribution INT);
CREATE TEMPORARY TABLE node (expr {text}, n INT, parent INT, kind {text}, license {text}, height INT);
CREATE TEMPORARY TABLE use (
  w INT, at_us BIGINT, understood INT, tenant {text}, base {text}, action {text}, purpose {text}, region {text},
  commercial INT, anybody INT, reviewed INT, drops INT);
CREATE TEMPORARY TABLE wanted (w INT, name {text});
CREATE TEMPORARY TABLE let_in (w INT, bundle {text});
CREATE TEMPORARY TABLE priority (w INT, expert {text}, place INT);
CREATE TEMPORARY TABLE tenant (w INT, slug {text}, active INT);
CREATE TEMPORARY TABLE base (w INT, digest {text}, active INT, expr {text});
CREATE TEMPORARY TABLE license (
  w INT, folded {text}, key {text}, reviewed INT, hosted INT, commercial INT, derivatives INT, distribution INT,
  duties INT, royalty INT, share {text});
CREATE TEMPORARY TABLE prohibited (w INT, folded {text}, term {text});
CREATE TEMPORARY TABLE expert (w INT, bundle {text}, id {text}, tenant {text}, base {text}, listed INT, expr {text});
CREATE TEMPORARY TABLE lineage (w INT, bundle {text}, dataset {text}, tenant {text}, consent {text}, expr {text});
CREATE TEMPORARY TABLE fact (
  w INT, kind {text}, permits INT, expert {text}, dataset {text}, tenant {text}, recipient {text}, given INT,
  commercial INT, action {text}, purpose {text}, region {text}, since BIGINT, until BIGINT);
CREATE TEMPORARY TABLE matched (
  w INT, kind {text}, says {text}, expert {text}, dataset {text}, tenant {text}, since BIGINT, until BIGINT);
CREATE TEMPORARY TABLE value (w INT, expr {text}, n INT, parent INT, height INT, duties INT, names {text});
CREATE TEMPORARY TABLE pick (w INT, expr {text}, n INT, parent INT, folded {text});
CREATE TEMPORARY TABLE stands_on (w INT, bundle {text}, subject {text}, key {text}, royalty INT, share {text});
CREATE TEMPORARY TABLE moment (w INT, at_us BIGINT);
CREATE TEMPORARY TABLE denial (w INT, bundle {text}, gate {text}, class {text});
CREATE TEMPORARY TABLE lapse (w INT, bundle {text}, at_us BIGINT);
CREATE TEMPORARY TABLE ground (w INT, reason {text});
CREATE TEMPORARY TABLE standing (w INT, bundle {text}, place INT);
CREATE TEMPORARY TABLE quarrel (w INT);
CREATE TEMPORARY TABLE settled (w INT, bundle {text}, kept INT);
CREATE INDEX fact_w ON fact (w);
CREATE INDEX expert_w ON expert (w);
CREATE INDEX lineage_w ON lineage (w, bundle);
CREATE INDEX license_w ON license (w, folded);
CREATE INDEX prohibited_w ON prohibited (w, folded);
CREATE INDEX matched_w ON matched (w, kind, says);
CREATE INDEX value_w ON value (w, expr, n);
CREATE INDEX pick_w ON pick (w, expr, n);
CREATE INDEX stands_w ON stands_on (w, bundle);
CREATE INDEX denial_w ON denial (w, bundle);
CREATE INDEX moment_w ON moment (w);
CREATE INDEX node_expr ON node (expr, parent);
CREATE INDEX tenant_w ON tenant (w, slug);
CREATE INDEX base_w ON base (w, digest);
CREATE INDEX use_w ON use (w);
CREATE INDEX standing_w ON standing (w, place);
CREATE INDEX wanted_w ON wanted (w);
CREATE INDEX let_in_w ON let_in (w);

-- name: close
INSERT INTO above
WITH RECURSIVE up (scheme, id, top) AS (
  SELECT scheme, id, id FROM term
  UNION
  SELECT up.scheme, up.id, parent.parent FROM up
  JOIN parent ON parent.scheme = up.scheme AND parent.id = up.top)
SELECT scheme, id, top FROM up;

-- name: matched
INSERT INTO matched
SELECT w, kind, says, expert, dataset, tenant, since, until FROM (
  SELECT f.*, CASE
    WHEN f.readable = 0 AND f.kind = 'rule' THEN 'error'
    WHEN f.readable = 0 AND f.permits = 0 THEN 'error'
    WHEN f.readable = 0 THEN NULL
    WHEN f.permits = 1 AND f.commercial >= f.for_money
      AND (f.action = f.asked_action OR (f.action = '*' AND f.asked_action <> 'export_weights'))
      AND (f.purpose = '*' OR f.purpose_below = 1) AND (f.region = '*' OR f.region_below = 1) THEN 'permit'
    WHEN f.permits = 0 AND f.action IN ('*', f.asked_action)
      AND (f.purpose = '*' OR f.purpose_below = 1 OR f.purpose_above = 1)
      AND (f.region = '*' OR f.region_below = 1 OR f.region_above = 1) THEN 'forbid'
  END AS says FROM (
    SELECT fact.*, use.action AS asked_action, use.commercial AS for_money,
      CASE WHEN (fact.action = '*' OR EXISTS (SELECT 1 FROM action WHERE action.id = fact.action))
        AND (fact.purpose = '*' OR EXISTS (
          SELECT 1 FROM above WHERE scheme = 'purpose' AND above.id = fact.purpose AND top = fact.purpose))
        AND (fact.region = '*' OR EXISTS (
          SELECT 1 FROM above WHERE scheme = 'region' AND above.id = fact.region AND top = fact.region))
        THEN 1 ELSE 0 END AS readable,
      CASE WHEN EXISTS (SELECT 1 FROM above WHERE scheme = 'purpose' AND above.id = use.purpose
        AND top = fact.purpose) THEN 1 ELSE 0 END AS purpose_below,
      CASE WHEN EXISTS (SELECT 1 FROM above WHERE scheme = 'purpose' AND above.id = fact.purpose
        AND top = use.purpose) THEN 1 ELSE 0 END AS purpose_above,
      CASE WHEN EXISTS (SELECT 1 FROM above WHERE scheme = 'region' AND above.id = use.region
        AND top = fact.region) THEN 1 ELSE 0 END AS region_below,
      CASE WHEN EXISTS (SELECT 1 FROM above WHERE scheme = 'region' AND above.id = fact.region
        AND top = use.region) THEN 1 ELSE 0 END AS region_above
    FROM fact JOIN use ON use.w = fact.w
    WHERE fact.given = 1 AND fact.recipient IN ('*', use.tenant)) AS f) AS g
WHERE says IS NOT NULL;

-- name: leaves
INSERT INTO value
SELECT DISTINCT named.w, node.expr, node.n, node.parent, 0, license.duties, license.key
FROM (SELECT w, expr FROM expert UNION SELECT w, expr FROM lineage
      UNION SELECT base.w, base.expr FROM base JOIN use ON use.w = base.w AND use.base = base.digest) AS named
JOIN use ON use.w = named.w AND use.understood = 1
JOIN action ON action.id = use.action
JOIN node ON node.expr = named.expr AND node.kind = 'license'
JOIN license ON license.w = named.w AND license.folded = node.license
WHERE license.reviewed = 1 AND license.folded NOT IN ('noassertion', 'none')
  AND COALESCE(license.hosted, 0) >= action.hosted
  AND COALESCE(license.derivatives, 0) >= action.derivatives
  AND COALESCE(license.distribution, 0) >= action.distribution
  AND COALESCE(license.commercial, 0) >= use.commercial
  AND NOT EXISTS (
    SELECT 1 FROM prohibited AS p WHERE p.w = license.w AND p.folded = license.folded AND (
      NOT EXISTS (SELECT 1 FROM term WHERE term.scheme = 'purpose' AND term.id = p.term)
      OR EXISTS (SELECT 1 FROM above WHERE scheme = 'purpose' AND above.id = use.purpose AND top = p.term)
      OR EXISTS (SELECT 1 FROM above WHERE scheme = 'purpose' AND above.id = p.term AND top = use.purpose)));

-- name: leaf_picks
INSERT INTO pick
SELECT value.w, value.expr, value.n, value.parent, node.license
FROM value JOIN node ON node.expr = value.expr AND node.n = value.n;

-- name: all_of
INSERT INTO pick
SELECT DISTINCT whole.w, node.expr, node.n, node.parent, pick.folded
FROM node
JOIN (SELECT value.w, value.expr, value.parent, COUNT(*) AS held FROM value
      GROUP BY value.w, value.expr, value.parent) AS whole ON whole.expr = node.expr AND whole.parent = node.n
JOIN pick ON pick.w = whole.w AND pick.expr = node.expr AND pick.parent = node.n
WHERE node.kind = 'and' AND node.height = {height}
  AND whole.held = (SELECT COUNT(*) FROM node AS part WHERE part.expr = node.expr AND part.parent = node.n);

-- name: one_of
INSERT INTO pick
SELECT best.w, best.expr, node.n, node.parent, pick.folded
FROM (SELECT value.*, ROW_NUMBER() OVER (
        PARTITION BY value.w, value.expr, value.parent ORDER BY value.duties, value.names, value.n) AS place
      FROM value) AS best
JOIN node ON node.expr = best.expr AND node.n = best.parent AND node.kind = 'or' AND node.height = {height}
JOIN pick ON pick.w = best.w AND pick.expr = best.expr AND pick.n = best.n
WHERE best.place = 1;

-- name: values
INSERT INTO value
SELECT picked.w, picked.expr, picked.n, picked.parent, {height}, SUM(picked.duties), {names}
FROM (SELECT pick.w, pick.expr, pick.n, pick.parent, license.duties, license.key
      FROM pick JOIN node ON node.expr = pick.expr AND node.n = pick.n AND node.height = {height}
      JOIN license ON license.w = pick.w AND license.folded = pick.folded
      ORDER BY pick.w, pick.expr, pick.n, license.key) AS picked
GROUP BY picked.w, picked.expr, picked.n, picked.parent;

-- name: stands_on
INSERT INTO stands_on
SELECT DISTINCT subject.w, subject.bundle, subject.id, license.key, license.royalty, license.share
FROM (SELECT w, bundle, id, expr FROM expert
      UNION SELECT w, bundle, dataset, expr FROM lineage
      UNION SELECT expert.w, expert.bundle, base.digest, base.expr FROM expert
        JOIN use ON use.w = expert.w JOIN base ON base.w = use.w AND base.digest = use.base
      UNION SELECT base.w, '', base.digest, base.expr FROM base
        JOIN use ON use.w = base.w AND base.digest = use.base) AS subject
JOIN pick ON pick.w = subject.w AND pick.expr = subject.expr AND pick.n = 0
JOIN license ON license.w = pick.w AND license.folded = pick.folded;

-- name: moments
INSERT INTO moment
SELECT w, at_us FROM use
UNION SELECT fact.w, since FROM fact JOIN use ON use.w = fact.w WHERE since > at_us AND kind <> 'rule'
UNION SELECT fact.w, until FROM fact JOIN use ON use.w = fact.w
  WHERE until > at_us AND until < 9007199254740992 AND kind <> 'rule';

-- name: denials
INSERT INTO denial
SELECT w, bundle, 'facts', 'error' FROM expert WHERE EXISTS (
  SELECT 1 FROM use WHERE use.w = expert.w AND understood = 0)
UNION ALL
SELECT expert.w, expert.bundle, 'identity', 'not_identified' FROM expert
JOIN use ON use.w = expert.w AND use.understood = 1
WHERE expert.listed = 0 OR expert.base <> use.base
  OR NOT EXISTS (SELECT 1 FROM tenant WHERE tenant.w = use.w AND slug = use.tenant AND active = 1)
  OR NOT EXISTS (SELECT 1 FROM tenant WHERE tenant.w = use.w AND slug = expert.tenant AND active = 1)
  OR NOT EXISTS (SELECT 1 FROM base WHERE base.w = use.w AND digest = use.base AND active = 1)
UNION ALL
SELECT expert.w, expert.bundle, 'license', 'license' FROM expert
JOIN use ON use.w = expert.w AND use.understood = 1
WHERE NOT EXISTS (
    SELECT 1 FROM value WHERE value.w = expert.w AND value.expr = expert.expr AND value.n = 0)
  OR EXISTS (SELECT 1 FROM lineage WHERE lineage.w = expert.w AND lineage.bundle = expert.bundle
    AND NOT EXISTS (SELECT 1 FROM value
      WHERE value.w = lineage.w AND value.expr = lineage.expr AND value.n = 0))
  OR EXISTS (SELECT 1 FROM base WHERE base.w = use.w AND digest = use.base
    AND NOT EXISTS (SELECT 1 FROM value WHERE value.w = base.w AND value.expr = base.expr AND value.n = 0))
UNION ALL
SELECT s.w, s.bundle, 'license', 'license' FROM stands_on AS s JOIN use ON use.w = s.w
WHERE s.bundle <> ''
GROUP BY s.w, s.bundle
HAVING SUM(use.commercial * s.royalty) > 1000000
  OR (MIN(use.action) = 'export_weights' AND COUNT(DISTINCT s.share) > 1)
UNION ALL
SELECT expert.w, expert.bundle, 'rules', CASE m.says WHEN 'error' THEN 'error' ELSE 'forbidden' END
FROM expert JOIN use ON use.w = expert.w AND use.understood = 1
JOIN matched AS m ON m.w = expert.w AND m.kind = 'rule' AND m.says IN ('error', 'forbid')
  AND m.expert IN ('*', expert.id)
UNION ALL
SELECT expert.w, expert.bundle, 'rules', 'no_rule'
FROM expert JOIN use ON use.w = expert.w AND use.understood = 1
WHERE NOT EXISTS (SELECT 1 FROM matched AS m WHERE m.w = expert.w AND m.kind = 'rule' AND m.says = 'permit'
  AND m.expert IN ('*', expert.id))
UNION ALL
SELECT expert.w, expert.bundle, 'consent', 'no_consent'
FROM expert JOIN use ON use.w = expert.w AND use.understood = 1
WHERE NOT EXISTS (SELECT 1 FROM lineage WHERE lineage.w = expert.w AND lineage.bundle = expert.bundle)
  OR EXISTS (SELECT 1 FROM lineage WHERE lineage.w = expert.w AND lineage.bundle = expert.bundle
    AND (lineage.consent = 'withdrawn'
      OR (lineage.consent = 'with_expert' AND lineage.tenant <> expert.tenant)));

-- name: lapses
CREATE TEMPORARY TABLE timed AS
SELECT expert.w AS w, expert.bundle AS bundle, moment.at_us AS at_us, 'grant' AS gate, 'no_grant' AS class
FROM expert JOIN use ON use.w = expert.w AND use.understood = 1 JOIN moment ON moment.w = expert.w
WHERE NOT EXISTS (SELECT 1 FROM matched AS m WHERE m.w = expert.w AND m.kind = 'grant' AND m.says = 'permit'
  AND m.expert IN ('*', expert.id) AND m.tenant = expert.tenant
  AND m.since <= moment.at_us AND moment.at_us < m.until)
UNION ALL
SELECT asked.w, asked.bundle, moment.at_us, 'consent', 'no_consent'
FROM (SELECT w, bundle, id, tenant, '' AS dataset FROM expert
      UNION ALL SELECT expert.w, expert.bundle, expert.id, lineage.tenant, lineage.dataset
      FROM expert JOIN lineage ON lineage.w = expert.w AND lineage.bundle = expert.bundle
      WHERE lineage.consent = 'separate') AS asked
JOIN use ON use.w = asked.w AND use.understood = 1 JOIN moment ON moment.w = asked.w
WHERE NOT EXISTS (SELECT 1 FROM matched AS m WHERE m.w = asked.w AND m.kind = 'consent'
  AND m.says = 'permit' AND m.expert IN ('*', asked.id) AND m.tenant = asked.tenant
  AND m.dataset = asked.dataset AND m.since <= moment.at_us AND moment.at_us < m.until)
UNION ALL
SELECT asked.w, asked.bundle, moment.at_us, 'consent', CASE m.says WHEN 'error' THEN 'error' ELSE 'forbidden' END
FROM (SELECT w, bundle, id, tenant, '' AS dataset FROM expert
      UNION ALL SELECT expert.w, expert.bundle, expert.id, lineage.tenant, lineage.dataset
      FROM expert JOIN lineage ON lineage.w = expert.w AND lineage.bundle = expert.bundle) AS asked
JOIN use ON use.w = asked.w AND use.understood = 1
JOIN matched AS m ON m.w = asked.w AND m.kind = 'consent' AND m.says IN ('error', 'forbid')
  AND m.expert IN ('*', asked.id) AND m.tenant = asked.tenant AND m.dataset = asked.dataset
JOIN moment ON moment.w = asked.w AND m.since <= moment.at_us AND moment.at_us < m.until;

-- name: now
INSERT INTO denial
SELECT timed.w, timed.bundle, timed.gate, timed.class
FROM timed JOIN use ON use.w = timed.w AND use.at_us = timed.at_us;

-- name: later
INSERT INTO lapse
SELECT timed.w, timed.bundle, MIN(timed.at_us) FROM timed JOIN use ON use.w = timed.w
WHERE timed.at_us > use.at_us GROUP BY timed.w, timed.bundle;

-- name: forget
DROP TABLE timed;

-- name: unreviewed
INSERT INTO denial
SELECT expert.w, expert.bundle, 'set', 'awaits_review'
FROM expert JOIN use ON use.w = expert.w AND use.reviewed = 1
WHERE NOT EXISTS (SELECT 1 FROM denial WHERE denial.w = expert.w AND denial.bundle = expert.bundle)
  AND NOT EXISTS (SELECT 1 FROM let_in WHERE let_in.w = expert.w AND let_in.bundle = expert.bundle);

-- name: ground
INSERT INTO ground
SELECT w, 'facts' FROM use WHERE understood = 0
UNION ALL
SELECT w, 'identity' FROM use
WHERE NOT EXISTS (SELECT 1 FROM tenant WHERE tenant.w = use.w AND slug = use.tenant AND active = 1)
  OR NOT EXISTS (SELECT 1 FROM base WHERE base.w = use.w AND digest = use.base AND active = 1)
UNION ALL
SELECT use.w, 'license' FROM use JOIN base ON base.w = use.w AND digest = use.base
WHERE use.understood = 1
  AND NOT EXISTS (SELECT 1 FROM value WHERE value.w = base.w AND value.expr = base.expr AND value.n = 0)
UNION ALL
SELECT s.w, 'license' FROM stands_on AS s JOIN use ON use.w = s.w
WHERE s.bundle = '' GROUP BY s.w
HAVING SUM(use.commercial * s.royalty) > 1000000
  OR (MIN(use.action) = 'export_weights' AND COUNT(DISTINCT s.share) > 1);

-- name: standing
INSERT INTO standing
SELECT expert.w, expert.bundle, ROW_NUMBER() OVER (
  PARTITION BY expert.w ORDER BY COALESCE(priority.place, 1000), expert.id, expert.bundle)
FROM expert JOIN use ON use.w = expert.w
LEFT JOIN priority ON priority.w = expert.w AND priority.expert = expert.id
WHERE (use.anybody = 1
    OR EXISTS (SELECT 1 FROM wanted WHERE wanted.w = expert.w AND wanted.name IN (expert.id, expert.bundle)))
  AND NOT EXISTS (SELECT 1 FROM denial WHERE denial.w = expert.w AND denial.bundle = expert.bundle);

-- name: quarrel
INSERT INTO quarrel
SELECT together.w FROM (
  SELECT DISTINCT s.w, s.subject, s.key, s.royalty, s.share FROM stands_on AS s
  JOIN standing ON standing.w = s.w AND standing.bundle = s.bundle) AS together
JOIN use ON use.w = together.w
GROUP BY together.w
HAVING SUM(use.commercial * together.royalty) > 1000000
  OR (MIN(use.action) = 'export_weights' AND COUNT(DISTINCT together.share) > 1);

-- name: settled
-- A set that clashes clashes with more members too. So keeping one after the other in the published order,
-- whoever still fits, ends with the first clash-free set when sets are read as binary numbers in that order.
INSERT INTO settled
WITH RECURSIVE contested (w, bundle, place, weight) AS (
  SELECT standing.w, standing.bundle, standing.place,
    1 << CAST(COUNT(*) OVER (PARTITION BY standing.w) - standing.place AS INT)
  FROM standing JOIN quarrel ON quarrel.w = standing.w
  JOIN use ON use.w = standing.w AND use.drops = 1),
subset (w, code, place) AS (
  SELECT quarrel.w, 0, CAST(0 AS BIGINT) FROM quarrel
  UNION ALL
  SELECT subset.w, subset.code + bit.b * contested.weight, contested.place
  FROM subset JOIN contested ON contested.w = subset.w AND contested.place = subset.place + 1
  CROSS JOIN (SELECT 0 AS b UNION ALL SELECT 1) AS bit),
clashing (w, code) AS (
  SELECT held.w, held.code FROM (
    SELECT DISTINCT subset.w, subset.code, s.subject, s.key, s.royalty, s.share FROM subset
    JOIN contested ON contested.w = subset.w AND (subset.code / contested.weight) % 2 = 1
    JOIN stands_on AS s ON s.w = subset.w AND s.bundle = contested.bundle) AS held
  JOIN use ON use.w = held.w
  GROUP BY held.w, held.code
  HAVING SUM(use.commercial * held.royalty) > 1000000
    OR (MIN(use.action) = 'export_weights' AND COUNT(DISTINCT held.share) > 1)),
first (w, code) AS (
  SELECT subset.w, MAX(subset.code) FROM subset
  LEFT JOIN clashing ON clashing.w = subset.w AND clashing.code = subset.code
  WHERE clashing.code IS NULL GROUP BY subset.w)
SELECT contested.w, contested.bundle, (first.code / contested.weight) % 2
FROM contested JOIN first ON first.w = contested.w
UNION ALL
SELECT standing.w, standing.bundle, 0 FROM standing JOIN quarrel ON quarrel.w = standing.w
JOIN use ON use.w = standing.w AND use.drops = 0;

-- name: read_experts
SELECT expert.w, expert.bundle, denial.gate, denial.class,
  CASE WHEN settled.kept IS NULL OR settled.kept = 1 THEN lapse.at_us END,
  CASE WHEN standing.bundle IS NULL THEN 0 WHEN settled.kept = 0 THEN 2 ELSE 1 END
FROM expert JOIN use ON use.w = expert.w
LEFT JOIN denial ON denial.w = expert.w AND denial.bundle = expert.bundle
LEFT JOIN lapse ON lapse.w = expert.w AND lapse.bundle = expert.bundle
LEFT JOIN standing ON standing.w = expert.w AND standing.bundle = expert.bundle
LEFT JOIN settled ON settled.w = expert.w AND settled.bundle = expert.bundle
WHERE use.anybody = 1
  OR EXISTS (SELECT 1 FROM wanted WHERE wanted.w = expert.w AND wanted.name IN (expert.id, expert.bundle))
ORDER BY expert.w, expert.bundle;

-- name: read_unknown
SELECT DISTINCT wanted.w, wanted.name FROM wanted
WHERE NOT EXISTS (SELECT 1 FROM expert
  WHERE expert.w = wanted.w AND (expert.id = wanted.name OR expert.bundle = wanted.name))
ORDER BY wanted.w, wanted.name;

-- name: read_denied
SELECT w FROM ground
UNION SELECT quarrel.w FROM quarrel JOIN use ON use.w = quarrel.w AND use.drops = 0;
