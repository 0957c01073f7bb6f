# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on the policy floor.

Tree::

    ProductError
    └── PolicyError
        ├── MalformedSnapshot        bytes that are no snapshot
        ├── SnapshotMismatch         a snapshot whose digest is not the published one
        ├── UnknownDeployment        a question names a deployment that the snapshot does not hold
        ├── IncompleteQuestion       a question leaves out what no deployment fills in
        ├── UnknownVocabulary        no such version of purposes or regions is shipped
        ├── UnknownTerm              a purpose, region or action that the vocabulary does not hold
        ├── InvalidLicenseExpression not an SPDX expression that can be evaluated
        ├── NotFound                 no such fact, asset, change or epoch
        │   └── NotYours             it exists, but the caller may not know: same code, same sentence
        ├── NotAllowed               the principal may not do this, whatever object it names
        ├── SelfApproval             an author tried to approve their own change
        ├── DigestChanged            an approval names another content than the change has
        ├── ChangeClosed             the change was approved or rejected before
        ├── AlreadySigned            an emergency stop has its second signature
        ├── StaleVersion             an edit of another version of a document than the present one
        ├── Overlaps                 a permission that says the same as another for some of its time
        ├── StaleDraft               an edit of another version of a draft than the present one
        ├── NotYetDue                the change's moment of publication has not come
        ├── AuthorityLapsed          an author or approver may no longer do what they once might
        ├── InvalidChange            a change that can not be made sense of
        ├── ConsentEventRefused      a consent record cannot take this event where it stands
        ├── ReceiptInvalid           no receipt, a changed one, or one signed by nobody trusted
        ├── LegalHold                somebody ordered that this is kept
        ├── ErasureClosed            an erasure cannot take this step where it stands
        ├── BrokenProof              evidence that cannot be read, or that nobody trusted signed
        ├── AssetConflict            the same name or digest with other facts
        ├── EpochRegressed           a server reports an epoch lower than one it reported before
        ├── BudgetExceeded           the tenant's budget does not cover the request
        ├── UnknownReservation       usage of a request that was never admitted
        ├── OverReservation          usage of more than was reserved
        ├── InvalidUsage             a usage record that contradicts itself or the register
        ├── PayloadMismatch          the same id came with another payload
        ├── SequenceGap              a server's uploads miss a number
        └── Unbalanced               entries that do not sum to zero
"""

from __future__ import annotations

from model_core.errors import ProductError


class PolicyError(ProductError):
    """Family of the policy floor."""

    code = "policy"


class MalformedSnapshot(PolicyError):
    """Bytes that are no snapshot, or facts that contradict each other's identity."""

    code = "malformed_snapshot"


class SnapshotMismatch(PolicyError):
    """A snapshot whose digest is not the published one."""

    code = "snapshot_mismatch"


class UnknownDeployment(PolicyError):
    """A question names a deployment that the snapshot does not hold."""

    code = "unknown_deployment"


class IncompleteQuestion(PolicyError):
    """A question without a deployment leaves out a field that nothing else fills in."""

    code = "incomplete_question"


class UnknownVocabulary(PolicyError):
    """No such version of purposes and regions is shipped."""

    code = "unknown_vocabulary"


class UnknownTerm(PolicyError):
    """A purpose, region or action that the vocabulary does not hold."""

    code = "unknown_term"


class InvalidLicenseExpression(PolicyError):
    """Not an SPDX license expression that can be evaluated."""

    code = "invalid_license_expression"


class NotFound(PolicyError):
    """There is no such fact, asset, change or epoch."""

    code = "not_found_in_register"


class NotYours(NotFound):
    """The object is another tenant's; told apart from ``NotFound`` inside the product only."""


class NotAllowed(PolicyError):
    """The principal may not do this, whatever object it names."""

    code = "not_allowed"


class SelfApproval(PolicyError):
    """An author tried to approve their own change."""

    code = "self_approval"


class DigestChanged(PolicyError):
    """An approval names another content than the change has."""

    code = "change_digest_differs"


class ChangeClosed(PolicyError):
    """The change was approved or rejected before."""

    code = "change_closed"


class AlreadySigned(PolicyError):
    """An emergency stop has its second signature."""

    code = "already_signed"


class StaleVersion(PolicyError):
    """An edit of another version of a document than the present one."""

    code = "stale_version"


class Overlaps(PolicyError):
    """A permission that says the same as another one for some of the same time."""

    code = "overlaps"


class StaleDraft(PolicyError):
    """An edit of another version of a draft than the present one."""

    code = "stale_draft"


class NotYetDue(PolicyError):
    """The change's moment of publication has not come."""

    code = "change_not_yet_due"


class AuthorityLapsed(PolicyError):
    """An author or approver may no longer do what they might when they did it."""

    code = "authority_lapsed"


class InvalidChange(PolicyError):
    """A change that can not be made sense of."""

    code = "invalid_change"


class ConsentEventRefused(PolicyError):
    """A consent record cannot take this event where it stands."""

    code = "consent_event_refused"


class BrokenProof(PolicyError):
    """Evidence that cannot be read, or that nobody trusted signed."""

    code = "broken_proof"


class ReceiptInvalid(PolicyError):
    """No receipt, a changed one, or one signed by nobody trusted."""

    code = "receipt_invalid"


class LegalHold(PolicyError):
    """Somebody ordered that this is kept, so it is not erased."""

    code = "legal_hold"


class ErasureClosed(PolicyError):
    """An erasure cannot take this step where it stands."""

    code = "erasure_closed"


class AssetConflict(PolicyError):
    """The same name or digest exists with other facts."""

    code = "asset_conflict"


class EpochRegressed(PolicyError):
    """A server reports an epoch lower than one it reported before."""

    code = "epoch_regressed"


class BudgetExceeded(PolicyError):
    """The tenant's budget does not cover the request."""

    code = "budget_exceeded"


class UnknownReservation(PolicyError):
    """Usage of a request that was never admitted."""

    code = "unknown_reservation"


class OverReservation(PolicyError):
    """Usage of more than was reserved."""

    code = "over_reservation"


class InvalidUsage(PolicyError):
    """A usage record that contradicts itself or the register."""

    code = "invalid_usage"


class PayloadMismatch(PolicyError):
    """The same id came with another payload."""

    code = "payload_mismatch"


class SequenceGap(PolicyError):
    """A server's uploads miss a number."""

    code = "sequence_gap"


class Unbalanced(PolicyError):
    """Entries that do not sum to zero."""

    code = "unbalanced"
