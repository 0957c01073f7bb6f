# SPDX-License-Identifier: Apache-2.0
"""The total catalogue of errors: HTTP status, title and exit code of every stable code of the four floors.

One row a code; a new error is a new row here. Knows nothing of documents and of how errors travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_core.errors import ProductError

_EXIT_CODES = {401: 3, 403: 3, 404: 4, 410: 4, 409: 5, 412: 5, 502: 7, 503: 7, 504: 7, 402: 8, 429: 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """How one kind of error is shown.

    Attributes:
        status: HTTP status.
        title: a short name that does not vary between occurrences.
    """

    status: int
    title: str

    @property
    def exit_code(self) -> int:
        """What the command line returns.

        1 unexpected, 3 key or right, 4 absent, 5 conflict, 6 input, 7 not available, 8 budget or rate.
        """
        return _EXIT_CODES.get(self.status, 6 if self.status < 500 else 1)


def _row(status: int, title: str) -> Row:
    return Row(status=status, title=title)


#: Every code of every floor. ``tests/cluster/test_errors.py`` walks the classes and fails on a missing one.
CATALOGUE: Mapping[str, Row] = {
    # families: never raised themselves; a row keeps the lookup total
    "internal": _row(500, "Internal error"),
    "model_core": _row(500, "Internal error in the model core"),
    "tenants": _row(500, "Internal error in the accounts"),
    "policy": _row(500, "Internal error in the register"),
    "cluster": _row(500, "Internal error in the cluster"),
    # cluster
    "refused_at_the_door": _row(400, "Refused at the door"),
    "request_refused": _row(400, "A request the engine cannot run"),
    "invalid_request": _row(422, "The request does not validate"),
    "unknown_operation": _row(404, "No such operation"),
    "role_required": _row(403, "The role is missing"),
    "too_large": _row(413, "Too large"),
    "unsupported_body": _row(415, "Unsupported body"),
    "export_refused": _row(403, "The composition may not leave"),
    "office_unavailable": _row(503, "The office does not answer"),
    "office_fault": _row(500, "Internal error in the office"),
    "host_unavailable": _row(503, "No model host answers"),
    "installation_refused": _row(500, "The installation is not safe to start"),
    "home_refused": _row(500, "The home folder is not safe"),
    "already_running": _row(409, "Already running"),
    "second_node_refused": _row(409, "A second node needs PostgreSQL"),
    "start_failed": _row(503, "A part did not start"),
    "not_running": _row(503, "Not running"),
    "gateway_unreachable": _row(503, "Nobody answers"),
    "unknown_field": _row(400, "No such field"),
    "remote_problem": _row(500, "Problem reported by a newer version"),
    # model hosts
    "hosting": _row(500, "Internal error in a model host"),
    "journal_damaged": _row(503, "Usage cannot be recorded"),
    "request_stopped": _row(403, "The request may not be answered any more"),
    "lease_lost": _row(503, "The register does not answer the model host"),
    "deployment_not_hosted": _row(503, "The deployment is not served at present"),
    "experts_not_loaded": _row(503, "Experts are being loaded"),
    "experts_do_not_fit": _row(503, "The experts do not fit into memory"),
    "prompt_refused": _row(400, "The prompt does not fit"),
    "host_stopping": _row(503, "The model host is ending"),
    "host_overloaded": _row(429, "The model host is busy"),
    "replica_lost": _row(503, "The model host went away"),
    "epoch_refused": _row(503, "The register went back"),
    # jobs and workshops
    "jobs": _row(500, "Internal error in a workshop"),
    "dataset_changed": _row(409, "The documents have changed"),
    "work_folder_busy": _row(409, "The work folder is held"),
    "foreign_bundle": _row(422, "Another expert than asked for"),
    "workshop_gone": _row(503, "The workshop is gone"),
    "workshop_protocol_violated": _row(422, "The training child broke its protocol"),
    "enclosure_unavailable": _row(503, "Training cannot be confined here"),
    # files and bundles
    "text": _row(500, "Internal error with text"),
    "dataset_refused": _row(422, "Not a data set"),
    "tokenizer_invalid": _row(422, "Not a tokenizer"),
    "interop": _row(500, "Internal error with a model folder"),
    "config_unsupported": _row(422, "A model of a kind that is not supported"),
    "model_folder_refused": _row(422, "Not a model folder"),
    "shared_part_differs": _row(422, "Another base than the one named"),
    "export_not_exact": _row(422, "The layout cannot hold the composition"),
    "training": _row(500, "Internal error in training"),
    "recipe_refused": _row(422, "The recipe is refused"),
    "training_diverged": _row(422, "The training diverged"),
    "checkpoint_invalid": _row(422, "Not a checkpoint of this run"),
    "packing": _row(422, "The bundle is refused"),
    "invalid_name": _row(422, "Not a name"),
    "invalid_digest": _row(422, "Not a digest"),
    "not_canonical": _row(422, "Not canonical JSON"),
    "manifest_invalid": _row(422, "The manifest is invalid"),
    "key_invalid": _row(500, "A signing key cannot be used"),
    "seal_missing": _row(422, "The seal is missing"),
    "signature_invalid": _row(422, "A signature does not verify"),
    "untrusted_key": _row(422, "Signed by an unknown key"),
    "digest_mismatch": _row(422, "The bytes are not those that were named"),
    "bundle_refused": _row(422, "The bundle is refused"),
    "bundle_corrupt": _row(422, "The bundle is corrupt"),
    "bundle_missing_file": _row(422, "The bundle lacks a file"),
    "bundle_extra_file": _row(422, "The bundle holds a foreign file"),
    "bundle_unsafe_path": _row(422, "The bundle holds an unsafe path"),
    "bundle_too_large": _row(413, "The bundle is too large"),
    "bundle_wrong_shape": _row(422, "The tensors have other shapes"),
    "bundle_not_safetensors": _row(422, "Not a safetensors file"),
    "bundle_wrong_base": _row(422, "Made for another base"),
    "artifact_not_found": _row(404, "No such bundle"),
    "artifact_conflict": _row(409, "Stored with another seal"),
    "store_unavailable": _row(503, "The artifact store does not answer"),
    "admission_refused": _row(422, "The expert is not admitted"),
    "router_row_too_long": _row(422, "A router row is too long"),
    "expert_too_loud": _row(422, "The expert drowns the public one"),
    "expert_overflows": _row(422, "The expert computes no numbers"),
    "share_above_calibration": _row(422, "The expert takes too much of public text"),
    "public_text_worse": _row(422, "Public text suffers"),
    "weighing_report_invalid": _row(422, "The weighing gave no usable figures"),
    "weighing_failed": _row(503, "The expert could not be weighed"),
    "network": _row(500, "Internal error with tensors"),
    "tensors_not_finite": _row(422, "The weights are not finite"),
    "tensors_out_of_range": _row(422, "A scale of the weights is not above zero"),
    "expert_not_resident": _row(503, "The expert is not loaded"),
    "router_needs_redo": _row(409, "The router was tuned for other members"),
    "engine": _row(500, "Internal error in the engine"),
    "engine_full": _row(429, "The engine is full"),
    "unknown_request": _row(404, "No such request"),
    "state_key_mismatch": _row(500, "A state of other experts was refused"),
    "step_pending": _row(500, "Internal error in the engine's steps"),
    "ranks_refused": _row(500, "The base cannot be spread over so many processes"),
    "rank_lost": _row(503, "A process of a model host is gone"),
    # accounts and jobs
    "database_in_use": _row(503, "The database is in use"),
    "database_role_unsafe": _row(500, "The database role is not safe"),
    "database_schema_behind": _row(500, "The database is of another release"),
    "database_unsupported": _row(500, "The database is not supported"),
    "not_authenticated": _row(401, "Not authenticated"),
    "key_unknown": _row(401, "The key is not known"),
    "key_revoked": _row(401, "The key was revoked"),
    "key_expired": _row(401, "The key has expired"),
    "tenant_suspended": _row(403, "The tenant is suspended"),
    "object_unknown": _row(404, "No such object"),
    "name_taken": _row(409, "The name is taken"),
    "role_refused": _row(422, "The tenant cannot hold this role"),
    "job_transition_illegal": _row(409, "The job cannot do this now"),
    "job_attempt_stale": _row(409, "Another attempt holds the job"),
    "idempotency_conflict": _row(409, "Idempotency key used for something else"),
    # register, metering, ledger
    "malformed_snapshot": _row(500, "The snapshot is malformed"),
    "snapshot_mismatch": _row(500, "Not the published snapshot"),
    "unknown_deployment": _row(404, "No such deployment"),
    "incomplete_question": _row(422, "The question is incomplete"),
    "unknown_vocabulary": _row(500, "No such vocabulary"),
    "unknown_term": _row(422, "A word that the vocabulary does not hold"),
    "card": _row(422, "The card is refused"),
    "card_refused": _row(422, "Not a card that can be read"),
    "card_too_large": _row(413, "The card is too large"),
    "invalid_license_expression": _row(422, "Not a license expression"),
    "not_found_in_register": _row(404, "No such object"),
    "not_allowed": _row(403, "Not allowed"),
    "self_approval": _row(403, "Somebody else has to approve"),
    "already_signed": _row(409, "The stop is signed"),
    "stale_version": _row(409, "It was edited meanwhile"),
    "overlaps": _row(409, "Another permission says the same"),
    "stale_draft": _row(409, "The draft was edited meanwhile"),
    "change_not_yet_due": _row(409, "The change's moment has not come"),
    "authority_lapsed": _row(409, "Its author or approver may no longer act"),
    "change_digest_differs": _row(409, "The change is not what was read"),
    "change_closed": _row(409, "The change was decided"),
    "invalid_change": _row(422, "The change makes no sense"),
    "consent_event_refused": _row(409, "The consent record does not allow this now"),
    "broken_proof": _row(422, "The proof does not hold"),
    "receipt_invalid": _row(422, "Not a receipt of this platform"),
    "legal_hold": _row(409, "It has to be kept"),
    "erasure_closed": _row(409, "The erasure does not allow this now"),
    "asset_conflict": _row(409, "Registered otherwise"),
    "epoch_regressed": _row(409, "A lower epoch than before"),
    "budget_exceeded": _row(402, "The budget does not cover it"),
    "unknown_reservation": _row(404, "No such reservation"),
    "over_reservation": _row(409, "More than was reserved"),
    "invalid_usage": _row(422, "The usage contradicts itself"),
    "payload_mismatch": _row(409, "The same id with another payload"),
    "sequence_gap": _row(409, "A number is missing"),
    "unbalanced": _row(500, "The entries do not sum to zero"),
    # gateway
    "door": _row(400, "Refused at the door"),
    "missing_key": _row(401, "No key was shown"),
    "wrong_method": _row(405, "Method not allowed"),
    "malformed_body": _row(400, "Malformed body"),
    "unsupported_parameter": _row(400, "Parameter not offered"),
    "sign_in_expired": _row(403, "The form has expired"),
    "precondition_failed": _row(412, "Not the present version"),
    "too_many_requests": _row(429, "Too many requests"),
    "generation_timed_out": _row(504, "The answer took too long"),
    "generation_failed": _row(502, "The model host gave up"),
}


def row_of(kind: type[ProductError]) -> Row:
    """The row of a class, or of its nearest ancestor that has one."""
    for ancestor in kind.__mro__:
        code = ancestor.__dict__.get("code")
        if isinstance(code, str) and code in CATALOGUE:
            return CATALOGUE[code]
    return CATALOGUE["internal"]
