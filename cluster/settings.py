# SPDX-License-Identifier: Apache-2.0
"""Everything an operator may choose, read once from ``MARKETPLACE_*`` variables.

This is the only module of the product that reads the environment. A :class:`Settings` value crosses
process borders as a document, so that every process of one marketplace sees the same choices whatever its
own environment says. Settings hold no secret but a database URL, which :meth:`Settings.public` masks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_core.packing.admission import AdmissionLimits

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Settings(BaseSettings):
    """The operator's choices; every field is also the variable ``MARKETPLACE_<FIELD>``.

    Attributes:
        home: folder of this installation: database, artifacts, keys, logs, run file.
        database_url: SQLAlchemy URL; empty means SQLite in the home folder. On PostgreSQL its role is one of
            ``marketplace_application`` and owns no table.
        migrator_database_url: URL of the tables' owner, with which ``up`` upgrades PostgreSQL's schema; it
            stays in the process that reads it. Empty where somebody runs ``marketplace database upgrade``.
        artifacts: folder of the artifact store or ``s3://bucket/prefix``; empty means the home folder.
        s3_endpoint: endpoint of an S3-compatible store; empty means AWS.
        checkpoints: folder of signed checkpoints of the audit, best on a disk that whoever has the database
            cannot write; empty means the home folder.
        http_host: address the gateway binds; loopback by default.
        http_port: port the gateway binds; 0 lets the kernel choose.
        ray_address: address of a running Ray cluster to join; empty starts an own head on loopback.
        ray_cpus: logical CPUs the own head offers to actors (workshops take one each).
        ray_object_store_bytes: size of the own head's object store; the product hardly uses it.
        threads: torch threads of each model host and each training child.
        max_running_per_tenant: training jobs of one tenant that may run at the same time.
        lease_s: how long a model host serves without news from the office.
        gateways: processes that answer at the gateway's address; the kernel spreads connections over them.
        first_token_s: how long a request may wait for its first token, in queues and in computing.
        request_s: how long an answer may take in all.
        host_replicas: model hosts per base; more of them share its requests.
        host_replicas_max: most model hosts per base under load; 0 keeps to ``host_replicas``.
        host_http_port: port at which model hosts answer HTTP themselves, without a gateway between; 0 is off.
        drain_s: how long a model host that is told to stop may finish its answers; the rest go on elsewhere.
        host_sequences: answers that each model host computes at the same time; more wait.
        host_context: longest prompt plus answer in tokens; at most what the base allows.
        host_kv_mib: memory of each model host for keys and values, kept prefixes among them, in MiB.
        host_experts_mib: memory of each model host for experts in MiB; those that were not asked for the
            longest leave first and come back when they are. None sets no bound.
        host_pins: experts that stay in memory once they are there (JSON): bundle digests or ``tenant/name``.
        host_kernels: compile the kernels of model hosts on this machine where it has a compiler.
        host_shards: processes over which each model host spreads a base and its experts; more than one for
            what does not fit into the memory of one device.
        host_device: where model hosts compute: ``cpu``, or ``cuda`` for one GPU a host (one for each of its
            processes with ``host_shards``).
        kernels_folder: where compiled kernels are kept; None keeps them in the home folder.
        host_keeps_withdrawn: withdrawn experts stay in the host's memory, filled with NaN, as a standing
            proof that nothing multiplies them.
        admission: the largest figures of an expert that is admitted, as JSON; the defaults are measured.
        backup_days: how long backups of database and artifacts are kept; records of erasure say so.
        max_upload_bytes: largest accepted request body.
        max_tokens: most completion tokens one request may ask for.
        start_timeout_s: how long ``up`` waits for each part before it gives up.
        starter_base: folder of a base bundle imported when the register has no base; empty means the one
            shipped with the product, ``none`` imports nothing.
        log_level: level of the structured logs.
    """

    model_config = SettingsConfigDict(env_prefix="MARKETPLACE_", frozen=True, extra="ignore")

    home: Path = Field(default_factory=lambda: Path.home() / ".marketplace")
    database_url: str = ""
    migrator_database_url: str = Field(default="", exclude=True)  # no other process ever gets it
    artifacts: str = ""
    s3_endpoint: str = ""
    checkpoints: Path | None = None
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8321, ge=0, le=65535)
    ray_address: str = ""
    ray_cpus: int = Field(default=8, ge=1, le=1024)
    ray_object_store_bytes: int = Field(default=80 * 2**20, ge=75 * 2**20)
    threads: int = Field(default=1, ge=1, le=256)
    max_running_per_tenant: int = Field(default=1, ge=1, le=1000)
    lease_s: float = Field(default=2.0, gt=0, le=60)
    gateways: int = Field(default=1, ge=1, le=64)
    first_token_s: float = Field(default=120.0, gt=0, le=3600)
    request_s: float = Field(default=1800.0, gt=0, le=86400)
    host_replicas: int = Field(default=1, ge=1, le=256)
    host_replicas_max: int = Field(default=0, ge=0, le=256)
    host_http_port: int = Field(default=0, ge=0, le=65535)
    drain_s: float = Field(default=30.0, ge=0, le=3600)
    host_sequences: int = Field(default=32, ge=1, le=1024)
    host_context: int = Field(default=1024, ge=16)
    host_kv_mib: int = Field(default=256, ge=1)
    host_experts_mib: int | None = Field(default=None, ge=1)
    host_pins: tuple[str, ...] = ()
    host_kernels: bool = True
    host_shards: int = Field(default=1, ge=1, le=64)
    host_device: Literal["cpu", "cuda"] = "cpu"
    kernels_folder: Path | None = None
    host_keeps_withdrawn: bool = False
    admission: AdmissionLimits = Field(default_factory=AdmissionLimits)
    backup_days: int = Field(default=35, ge=0, le=3650)
    max_upload_bytes: int = Field(default=256 * 2**20, ge=1024)
    max_tokens: int = Field(default=4096, ge=1)
    start_timeout_s: float = Field(default=120.0, gt=0)
    starter_base: str = ""
    log_level: str = "INFO"

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("log_level", mode="after")
    @classmethod
    def _known_level(cls, value: str) -> str:
        level = value.upper()
        if level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("log_level is one of DEBUG, INFO, WARNING, ERROR")  # pydantic wraps it
        return level

    @model_validator(mode="after")
    def _filled(self) -> Settings:
        # Derived defaults are written into the value so that every process that receives it reads the
        # same text instead of deriving it again from its own idea of the home folder.
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{self.home / 'marketplace.sqlite'}")
        if not self.artifacts:
            object.__setattr__(self, "artifacts", str(self.home / "artifacts"))
        return self

    @property
    def artifacts_in_s3(self) -> bool:
        """True if the artifact store is a bucket."""
        return self.artifacts.startswith("s3://")

    @property
    def embedded_database(self) -> bool:
        """True for the SQLite default, whose file exactly one process opens."""
        return self.database_url.startswith("sqlite")

    @property
    def loopback_only(self) -> bool:
        """True while nothing outside this machine can reach the gateway."""
        return self.http_host in _LOOPBACK

    def public(self) -> dict[str, Any]:
        """The settings for people and logs, with the database password masked."""
        shown = self.model_dump(mode="json")
        parts = urlsplit(self.database_url)
        if parts.password is not None:
            host = parts.netloc.rpartition("@")[2]
            shown["database_url"] = urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
        return shown


def clean_environment() -> dict[str, str]:
    """The environment for a process that the marketplace starts: a short list of harmless names.

    Ray workers inherit the environment of whoever started the node, so a secret exported in the
    operator's shell would be visible in every actor; hence a list of what may pass, not of what may not.
    """
    passing = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "USER", "LOGNAME",
               "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # fmt: skip
    return {name: os.environ[name] for name in passing if name in os.environ}


def install_environment(values: dict[str, str]) -> None:
    """Sets variables of this process that a library reads only from the environment (Ray at import)."""
    os.environ.update(values)


def installed(name: str) -> str | None:
    """What a library would read from the environment of this process under that name."""
    return os.environ.get(name)
