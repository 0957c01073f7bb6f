# SPDX-License-Identifier: Apache-2.0
"""What an expert does beside the public one, as figures, and which figures are admitted.

A report is made by a forward pass (``evaluation.admission``) and judged here, without a tensor library, so
that the process that decides never loads hostile weights. The judgement knows the figures, the limits and
what the sealed manifest declares; it does not know who asks, and it cannot know text that nobody probed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_core.errors import (
    ExpertTooLoud,
    PublicTextWorse,
    ReportInvalid,
    RouterRowTooLong,
    ShareAboveCalibration,
)

#: Longest report that is read, in bytes.
MAX_REPORT_BYTES = 1 << 20
#: The figure of a manifest's calibration that a measured share is held against.
DECLARED_SHARE = "public_share"

# Of a mean over tokens: two copies of one network share a token half and half up to this.
_ROUNDING = 1e-6

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**53 - 1)]


class _Document(BaseModel):
    """A frozen value that crosses processes and years."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class LayerReading(_Document):
    """What one layer of an expert does beside the public one.

    Attributes:
        share: mean routing weight of the expert over the probe's tokens, the pair's weights summing to 1.
        output_share: its part of the lengths of what both add to the stream, ``w |f|`` over the sum of both.
        gain: mean length of what its network puts out over that of the public one, on equal input.
        row_logit: largest lead over the public expert that its router row can give an input of typical
            length (Cauchy-Schwarz).
        worst_logit: the same for every input that this base can ever produce, of any text.
        gate: mean of its gate's sigmoid; 1 where it has none.
    """

    share: _Share
    output_share: _Share
    gain: _Positive
    row_logit: _Positive
    worst_logit: _Positive
    gate: _Share


class AdmissionReport(_Document):
    """What the forward passes of an admission have shown.

    Attributes:
        weighed: whether the base carries public text to weigh the expert on; without it shares and losses
            say nothing and only rows and gains are judged.
        probe: what was run.
        documents: documents of the probe.
        tokens: its tokens.
        mean_share: the expert's mean routing weight over layers and tokens.
        mean_output_share: its mean part of the mixture's output.
        max_document_share: its mean routing weight in the document of which it takes most.
        public_excess: bits per byte of the pair over the base's on the probe, less 1; 0 where not weighed.
        layers: one reading per layer, from the first on.
    """

    weighed: bool
    probe: Literal["public text", "random tokens"]
    documents: _Count
    tokens: _Count
    mean_share: _Share
    mean_output_share: _Share
    max_document_share: _Share
    public_excess: _Finite
    layers: Annotated[tuple[LayerReading, ...], Field(min_length=1, max_length=512)]

    def facts(self) -> dict[str, bool | int | float | str]:
        """The figures that are worth keeping, flat, rounded to six digits."""
        return {
            "weighed": self.weighed,
            "probe": self.probe,
            "documents": self.documents,
            "tokens": self.tokens,
            "mean_share": round(self.mean_share, 6),
            "max_share": round(max(one.share for one in self.layers), 6),
            "max_document_share": round(self.max_document_share, 6),
            "mean_output_share": round(self.mean_output_share, 6),
            "max_output_share": round(max(one.output_share for one in self.layers), 6),
            "max_gain": round(max(one.gain for one in self.layers), 6),
            "max_row_logit": round(max(one.row_logit for one in self.layers), 6),
            "max_worst_logit": round(max(one.worst_logit for one in self.layers), 6),
            "mean_gate": round(sum(one.gate for one in self.layers) / len(self.layers), 6),
            "public_excess": round(self.public_excess, 6),
        }


class AdmissionLimits(_Document):
    """The largest figures that are admitted; the measurements behind the defaults are in decision 0021.

    Attributes:
        share: mean routing weight on public text, whatever the manifest declares.
        layer_share: the same of any one layer.
        share_ratio: how many times the declared mean the measured one may be (the probe reads other
            documents than calibration did).
        share_tolerance: what is added to that, so that a share near 0 may be measured at all.
        undeclared_share: mean routing weight of an expert whose manifest declares none.
        output_share_lead: how far the mean part of the output may lie above the mean routing weight.
        gain: length of an expert's output over the public expert's, in any one layer.
        row_logit: lead that a router row may give an input of typical length.
        public_excess: relative excess of bits per byte on public text.
    """

    share: _Share = 0.5
    layer_share: _Share = 0.75
    share_ratio: _Positive = 1.5
    share_tolerance: _Share = 0.01
    undeclared_share: _Share = 0.5
    output_share_lead: _Share = 0.1
    gain: _Positive = 4.0
    row_logit: _Positive = 22.0
    public_excess: _Positive = 0.01


def parse_report(data: bytes) -> AdmissionReport:
    """Reads a report that a confined process wrote.

    Raises:
        ReportInvalid: it is too long, not JSON, or figures are missing or impossible.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise ReportInvalid("The report of the weighing is too long; the expert was not admitted.")
    try:
        return AdmissionReport.model_validate_json(data)
    except ValidationError as error:
        raise ReportInvalid(
            "The report of the weighing cannot be read; the expert was not admitted.",
            fields=sorted({".".join(map(str, item["loc"]))[:80] for item in error.errors()})[:16],
        ) from None


def check_admission(
    report: AdmissionReport, calibration: Mapping[str, float], limits: AdmissionLimits | None = None
) -> None:
    """Admits a report or says which figure is not admitted.

    Args:
        report: the measured figures.
        calibration: what the sealed manifest declares (``ExpertManifest.calibration``).
        limits: the defaults unless told otherwise.

    Raises:
        RouterRowTooLong: a router row could take nearly every token.
        ExpertTooLoud: a network puts out so much that a small weight does not bound it.
        ShareAboveCalibration: it takes more of public text than it declares, or than anybody may.
        PublicTextWorse: beside it the base predicts public text worse than is admitted.
    """
    limits = limits or AdmissionLimits()
    _check_layers(report, limits)
    if report.weighed:
        _check_share(report, calibration, limits)
        _check_text(report, limits)


def _check_layers(report: AdmissionReport, limits: AdmissionLimits) -> None:
    for index, layer in enumerate(report.layers):
        if layer.row_logit > limits.row_logit:
            raise RouterRowTooLong(
                f"The router row of layer {index} can give text of typical length a logit of "
                f"{layer.row_logit:.1f}; at most {limits.row_logit:.1f} is admitted. Bound the rows, "
                "calibrate and seal again.",
                layer=index,
                row_logit=round(layer.row_logit, 6),
                limit=limits.row_logit,
            )
        if layer.gain > limits.gain:
            raise ExpertTooLoud(
                f"In layer {index} the expert puts out {layer.gain:.1f} times as much as the public one on "
                f"the same text; at most {limits.gain:.1f} times is admitted. Train it again from the base.",
                layer=index,
                gain=round(layer.gain, 6),
                limit=limits.gain,
            )


def _check_share(report: AdmissionReport, calibration: Mapping[str, float], limits: AdmissionLimits) -> None:
    declared = calibration.get(DECLARED_SHARE)
    bound = limits.undeclared_share
    if declared is not None:
        bound = min(max(declared, 0.0) * limits.share_ratio + limits.share_tolerance, limits.share)
    if report.mean_share > bound + _ROUNDING:
        says = "the manifest declares none" if declared is None else f"the manifest declares {declared:.3f}"
        raise ShareAboveCalibration(
            f"The expert takes {report.mean_share:.3f} of public text; {says} and at most "
            f"{bound:.3f} is admitted. Calibrate it against public text and "
            "seal again.",
            share=round(report.mean_share, 6),
            declared=declared,
            limit=round(bound, 6),
        )
    for index, layer in enumerate(report.layers):
        if layer.share > limits.layer_share:
            raise ShareAboveCalibration(
                f"In layer {index} the expert takes {layer.share:.3f} of public text; at most "
                f"{limits.layer_share:.3f} of any layer is admitted. Calibrate it and seal again.",
                layer=index,
                share=round(layer.share, 6),
                limit=limits.layer_share,
            )
    if report.mean_output_share > report.mean_share + limits.output_share_lead:
        raise ExpertTooLoud(
            f"The expert makes {report.mean_output_share:.3f} of the mixture's output on public text with "
            f"{report.mean_share:.3f} of the routing weight. Train it again from the base.",
            output_share=round(report.mean_output_share, 6),
            share=round(report.mean_share, 6),
            limit=limits.output_share_lead,
        )


def _check_text(report: AdmissionReport, limits: AdmissionLimits) -> None:
    if report.public_excess > limits.public_excess:
        raise PublicTextWorse(
            f"Beside the expert public text takes {report.public_excess:.2%} more bits than with the base "
            f"alone; at most {limits.public_excess:.2%} is admitted. Calibrate it with a smaller tolerance "
            "and seal again.",
            public_excess=round(report.public_excess, 6),
            limit=limits.public_excess,
        )
