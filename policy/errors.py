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
        └── InvalidLicenseExpression not an SPDX expression that can be evaluated
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
