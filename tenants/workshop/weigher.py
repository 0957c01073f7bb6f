# SPDX-License-Identifier: Apache-2.0
"""The weighing child: runs a stranger's expert beside its base and leaves the figures in a file.

``python -m tenants.workshop.weigher`` reads one order line on standard input and writes ``report.json`` into
its work folder; it speaks the same event lines as a training child and is confined by the same enclosure, so
hostile weights meet a process that can reach nothing but the two bundles. It judges nothing: whoever started
it does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from model_core.errors import ProductError
from model_core.packing.files import write_new_file
from tenants.workshop.protocol import (
    MAX_LINE_BYTES,
    ChildEvent,
    DoneEvent,
    ErrorEvent,
    PhaseEvent,
    event_line,
)

REPORT_FILE = "report.json"

# A probe costs a few forward passes per token, so a large base is weighed on fewer documents.
_LARGE_BASE_BYTES = 1 << 30
_LARGE_DOCUMENTS = 6


class WeighingOrder(BaseModel):
    """The one line that tells a child what to weigh.

    Attributes:
        base_folder: verified base bundle, readable only.
        base_digest: its digest.
        expert_folder: checked expert bundle, readable only.
        work_folder: the child's own folder, which receives the report.
        seed: of random tokens, where the base carries no text.
        threads: compute threads the child may use.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    base_folder: str
    base_digest: str
    expert_folder: str
    work_folder: str
    seed: int = 0
    threads: int = 1

    def to_line(self) -> bytes:
        """The JSON line for the child's standard input, newline included."""
        return self.model_dump_json().encode() + b"\n"


def weigh(order: WeighingOrder) -> bytes:
    """Weighs an expert and returns the report's bytes.

    Raises:
        ProductError: base or expert cannot be loaded, or the expert computes no numbers.
    """
    import torch

    from model_core.evaluation.admission import ProbeSize, weigh_expert
    from model_core.network.checkpoint import load_base_folder, load_expert_folder
    from model_core.packing.manifest import BASE_WEIGHTS_FILE, CALIBRATION_FILE, TOKENIZER_FILE
    from model_core.text.documents import Document, read_documents
    from model_core.text.tokenizer import TextTokenizer
    from model_core.training.finishing import public_halves

    torch.set_num_threads(order.threads)
    base = Path(order.base_folder)
    manifest, decoder = load_base_folder(base)
    _, expert = load_expert_folder(Path(order.expert_folder), order.base_digest, manifest.shape)
    public: list[Document] = []
    tokenizer = None
    if manifest.calibration_digest is not None:
        public = public_halves(read_documents(base / CALIBRATION_FILE))[1]
        tokenizer = TextTokenizer.load(base / TOKENIZER_FILE)
    large = (base / BASE_WEIGHTS_FILE).stat().st_size > _LARGE_BASE_BYTES
    size = ProbeSize(documents=_LARGE_DOCUMENTS) if large else ProbeSize()
    report = weigh_expert(decoder.float(), expert.float(), public, tokenizer, seed=order.seed, size=size)
    return report.model_dump_json().encode()


def main() -> int:
    """Reads the order, weighs, says how it ended."""
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no event

    def emit(event: ChildEvent) -> None:
        events.write(event_line(event))

    try:
        order = WeighingOrder.model_validate_json(sys.stdin.buffer.readline(MAX_LINE_BYTES + 1))
        emit(PhaseEvent(name="weigh", message="Reading public text beside the base."))
        write_new_file(Path(order.work_folder) / REPORT_FILE, weigh(order))
    except ValidationError:
        emit(ErrorEvent(code="weighing_failed", sentence="The order or the report does not validate."))
        return 1
    except ProductError as error:
        emit(ErrorEvent(code=error.code, sentence=error.sentence[:1000]))
        return 1
    except Exception as error:
        sentence = f"The weighing failed for an unforeseen reason ({type(error).__name__})."
        emit(ErrorEvent(code="weighing_failed", sentence=sentence, retry=isinstance(error, OSError)))
        return 1
    emit(DoneEvent())
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # everything is written; taking the numerical libraries down in order takes seconds
