# SPDX-License-Identifier: Apache-2.0
"""Gradients of a differentially private step: Poisson sampling, per-document clipping, Gaussian noise.

A document enters a step with one window of its tokens, drawn anew each time, so that its whole text is
learned from while it never counts more than once a step. Gradients are computed document by document, since
clipping needs each one's length; only their clipped sum is kept.

All randomness comes from a secret key, never from the recipe's seed: whoever can redraw the noise can take
it off again, and the seed stands in the manifest. (torch's own generator could be searched through: it is
seeded with 32 bits.) The stream is AES in counter mode over (step, stream), so a resumed run draws what an
uninterrupted one would have drawn, given the key, which stays in the job's work folder.

What a run reports of each step must not touch private text either: the loss is that of a public row, the
norm that of the noised gradient.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor, nn

from model_core.errors import RecipeRefused
from model_core.packing.canonical import canonical_bytes
from model_core.text.batches import PackedText, encode_documents
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer
from model_core.training.gradients import Batch
from model_core.training.privacy import PrivacyPlan

KEY_FILE = "privacy.key"
_KEY_BYTES = 32
_SAMPLING, _WINDOWS, _FIRST_TENSOR = 0, 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentRows:
    """Documents as rows, none of which holds text of two documents.

    Attributes:
        packed: rows ``[N, S+1]``, a document's windows one after another; short ones are filled up with the
            end-of-text token.
        first_rows: where each document's windows begin, with the number of rows at the end, ``[docs + 1]``.
    """

    packed: PackedText
    first_rows: np.ndarray


def document_rows(
    documents: Sequence[Document], tokenizer: TextTokenizer, *, sequence_tokens: int
) -> DocumentRows:
    """Cuts every document into windows of its own, each ending where the next begins."""
    end, rows, firsts = tokenizer.end_of_text_id, [], [0]
    encoded = encode_documents(documents, tokenizer)
    for ids in encoded:
        closed = ids if len(ids) > 1 and ids[-1] == end else np.append(ids, np.int32(end))
        for start in range(0, len(closed) - 1, sequence_tokens):
            window = closed[start : start + sequence_tokens + 1]
            rows.append(np.pad(window, (0, sequence_tokens + 1 - len(window)), constant_values=end))
        firsts.append(len(rows))
    packed = PackedText(
        rows_NS1=np.stack(rows),
        tokens=sum(len(ids) for ids in encoded),
        text_bytes=sum(document.size_bytes for document in documents),
    )
    return DocumentRows(packed=packed, first_rows=np.array(firsts))


def run_key(folder: Path | None, identity: Mapping[str, str]) -> bytes:
    """The key of one run: from a secret in its work folder, made on the first call, and what the run is.

    Binding it to the identity keeps two runs in one folder from ever drawing the same noise: their
    difference would show what the noise hides.

    Args:
        folder: the work folder; None draws a key that nobody can draw again.
        identity: digests of recipe, data and base.
    """
    secret = secrets.token_bytes(_KEY_BYTES) if folder is None else _kept_secret(folder)
    return hashlib.sha256(secret + canonical_bytes(dict(identity))).digest()


def key_fingerprint(key: bytes) -> str:
    """Names a key without telling it, so that a checkpoint is resumed only with the noise it began with."""
    return "sha256:" + hashlib.sha256(b"fingerprint" + key).hexdigest()


def _kept_secret(folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / KEY_FILE
    if not path.exists():
        fresh = folder / f".{KEY_FILE}"
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        fresh.rename(path)
    return path.read_bytes()


class SecretStream:
    """Random numbers that only the holder of the key can draw; a pure function of (key, step, stream).

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def uniforms(self, step: int, stream: int, count: int) -> np.ndarray:
        """Numbers in (0, 1), fp64 ``[count]``, with 53 random bits each."""
        start = step.to_bytes(8, "big") + stream.to_bytes(4, "big") + bytes(4)
        encryptor = Cipher(algorithms.AES(self._key), modes.CTR(start)).encryptor()
        words = np.frombuffer(encryptor.update(bytes(8 * count)), "<u8")
        numbers: np.ndarray = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return numbers

    def normals(self, step: int, stream: int, count: int) -> Tensor:
        """Standard normal numbers, fp64 ``[count]`` (Box-Muller)."""
        half = (count + 1) // 2
        pairs = torch.from_numpy(self.uniforms(step, stream, 2 * half))
        radius = (-2 * pairs[:half].log()).sqrt()
        angle = 2 * torch.pi * pairs[half:]
        return torch.cat((radius * angle.cos(), radius * angle.sin()))[:count]


class PrivateSteps:
    """Both seams of the training loop at once: which rows a step reads, and their gradient.

    Args:
        plan: noise, clipping and sampling rate.
        rows: the documents.
        parameters: what is trained, by name; clipping is over all of them together.
        key: of this run.
        public: rows of public documents, on one of which each step's loss is reported.
        end_of_text_id: of the tokenizer; opens documents and fills rows up.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        rows: DocumentRows,
        parameters: Mapping[str, nn.Parameter],
        *,
        key: bytes,
        public: DocumentRows,
        end_of_text_id: int,
    ) -> None:
        self._plan = plan
        self._first_rows = rows.first_rows
        self._parameters = dict(parameters)
        self._stream = SecretStream(key)
        self._public = public.packed
        self._end = end_of_text_id
        self._step = 0

    def step_rows(self, step: int) -> np.ndarray:
        """One window of every document that this step samples; perhaps none."""
        self._step = step
        n_documents = len(self._first_rows) - 1
        taken = np.flatnonzero(self._stream.uniforms(step, _SAMPLING, n_documents) < self._plan.sampling_rate)
        where = self._stream.uniforms(step, _WINDOWS, n_documents)[taken]
        firsts = self._first_rows[taken]
        chosen: np.ndarray = firsts + (where * (self._first_rows[taken + 1] - firsts)).astype(np.int64)
        return chosen

    def accumulate(self, accelerator: Accelerator, model: nn.Module, batches: Sequence[Batch]) -> float:
        """Leaves the sum of the clipped gradients of the step's documents.

        Returns:
            Cross-entropy of a public row, nats a token.

        Raises:
            RecipeRefused: several processes; each would have to draw its share of one sample and one noise.
        """
        if accelerator.num_processes > 1:
            raise RecipeRefused("Private training runs in one process.", fields=["processes"])
        for parameter in self._parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        for ids_BS, targets_BS in batches:
            for row in range(len(ids_BS)):
                self._add(model, *self._trimmed(ids_BS[row], targets_BS[row], accelerator.device))
        row = self._step % len(self._public.rows_NS1)
        ids_1S, targets_1S = self._public.batch(np.array([row]))
        with torch.no_grad():
            _, plain = model(*self._trimmed(ids_1S[0], targets_1S[0], accelerator.device))
        return float(plain)

    def finish(
        self,
        accelerator: Accelerator,  # noqa: ARG002  (the seam's)
        parameters: Mapping[str, nn.Parameter],
    ) -> float:
        """Adds the noise and divides by the expected number of documents, never by the number sampled.

        Returns:
            Norm of the noised gradient.
        """
        scale = self._plan.noise_multiplier * self._plan.clip_norm
        square = 0.0
        for place, parameter in enumerate(parameters.values()):
            gradient = parameter.grad
            assert gradient is not None  # noqa: S101  (accumulate gave every parameter one)
            noise = self._stream.normals(self._step, _FIRST_TENSOR + place, gradient.numel())
            gradient.add_((scale * noise).view(gradient.shape).to(gradient))
            gradient.div_(self._plan.expected_documents)
            square += float(gradient.double().square().sum())
        return math.sqrt(square)

    def _trimmed(self, ids_S: Tensor, targets_S: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """One row up to the first end of text among its targets: what follows only fills it up."""
        ends = (targets_S == self._end).nonzero()
        length = int(ends[0]) + 1 if len(ends) else len(targets_S)
        return ids_S[None, :length].to(device), targets_S[None, :length].to(device)

    def _add(self, model: nn.Module, ids_1S: Tensor, targets_1S: Tensor) -> None:
        parameters = list(self._parameters.values())
        loss, _ = model(ids_1S, targets_1S)
        gradients = torch.autograd.grad(loss, parameters)
        norm = float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())
        if not np.isfinite(norm):
            return  # a document whose gradient has no length cannot be bounded, so it counts nothing
        factor = min(1.0, self._plan.clip_norm / max(norm, 1e-12))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert parameter.grad is not None  # noqa: S101  (accumulate gave every parameter one)
            parameter.grad.add_(gradient, alpha=factor)
