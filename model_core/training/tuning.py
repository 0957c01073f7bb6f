# SPDX-License-Identifier: Apache-2.0
"""Router tuning: the router rows of all members, and nothing else, trained on public text (FlexOlmo, 3.3.3).

Every member's share of the text is a set of public proxy documents (``proxies``), one more share is other
public text, and all shares are of equal size. Tuning sees all members at once, so its rows are a labelled
variant: they hold for these members only, and after a removal they must be made anew. ``redo_tuning`` does
that from the members' own rows, never from rows that the removed member had shaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from model_core.errors import DatasetRefused, RouterNeedsRedo, TrainingError
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.mixture import LayerExperts, Routing, plan_uniform
from model_core.network.tuned_router import TunedRouter, apply_tuned, choose_router, rows_to_bytes
from model_core.packing.canonical import digest_bytes
from model_core.packing.tuned_router import TextSource, TunedRouterManifest
from model_core.text.batches import PackedText, describe, pack
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer
from model_core.training.objective import Objective
from model_core.training.progress import Progress
from model_core.training.recipe import TrainingRecipe
from model_core.training.run import TrainingRun

__all__ = [
    "RouterObjective",
    "RouterRecipe",
    "apply_tuned",
    "choose_router",
    "redo_tuning",
    "tune_router",
]


class RouterRecipe(TrainingRecipe):
    """Settings of router tuning; learning rate, decay and losses are the paper's.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak.
        weight_decay: decoupled; pulls rows towards the public row's origin.
        warmup_share: share of the steps in which the rate rises from 0.
        most_reuse: how often one row of a small source may be repeated to make all shares equal; beyond it
            every share shrinks instead.
    """

    steps: int = Field(default=200, ge=1, le=10_000_000)
    learning_rate: float = Field(default=2e-3, gt=0, le=1, allow_inf_nan=False)
    weight_decay: float = Field(default=0.1, ge=0, le=1)
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    most_reuse: int = Field(default=3, ge=1, le=100)


class RouterObjective(Objective):
    """Trains the router rows of the public expert and of all members with k = n; all else is frozen.

    The rows are parameters of their own, ``[E, D]`` a layer with the public one first: neither the base nor
    an expert is changed.

    Args:
        decoder: the base.
        experts: the members in canonical order.
        logit_z_loss: weight of the squared log-sum-exp of vocabulary logits.
        router_z_loss: weight of the squared log-sum-exp of router logits, averaged over layers.
    """

    def __init__(
        self, decoder: Decoder, experts: Sequence[Expert], *, logit_z_loss: float, router_z_loss: float
    ) -> None:
        super().__init__()
        self.decoder = decoder.requires_grad_(False)
        self.experts = nn.ModuleList(expert.requires_grad_(False) for expert in experts)
        with torch.no_grad():
            self._panels = decoder.panels(experts)
        self.rows = nn.ParameterList(nn.Parameter(panel.rows.rows_ED.clone()) for panel in self._panels)
        self.logit_z_loss = logit_z_loss
        self.router_z_loss = router_z_loss

    def panels(self) -> list[LayerExperts]:
        """What each layer routes to, with the rows in training."""
        return [
            replace(panel, rows=replace(panel.rows, rows_ED=rows_ED))
            for panel, rows_ED in zip(self._panels, self.rows, strict=True)
        ]

    def forward(self, ids_BS: Tensor, targets_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss to minimise and the plain cross-entropy in it (detached), nats a token."""
        squares: list[Tensor] = []

        def watch(_layer: int, _h_BSD: Tensor, routing: Routing | None) -> None:
            if routing is not None:
                squares.append(routing.logits[0].logsumexp(-1).square().mean())

        n_experts = 1 + len(self.experts)
        plan = plan_uniform(range(n_experts), n_experts, ids_BS.device)
        hidden_BSD = self.decoder.run(ids_BS, self.panels(), plan, observe=watch)
        loss, z_loss = self.token_loss(self.decoder.logits(hidden_BSD), targets_BS)
        return loss + z_loss + self.router_z_loss * torch.stack(squares).mean(), loss.detach()

    def member_rows(self) -> list[Tensor]:
        """Per member ``[L, D]``: tuned rows less what tuning moved the public row (see ``tuned_router``)."""
        with torch.no_grad():
            tuned_LED = torch.stack([rows_ED.detach().float() for rows_ED in self.rows])
            public_LD = torch.stack([panel.rows.rows_ED[0] for panel in self._panels])
            moved_LD = tuned_LED[:, 0] - public_LD
            return [(tuned_LED[:, place] - moved_LD).cpu() for place in range(1, tuned_LED.shape[1])]


def tune_router(
    decoder: Decoder,
    experts: Mapping[str, Expert],
    proxies: Mapping[str, Sequence[Document]],
    public: Sequence[Document],
    tokenizer: TextTokenizer,
    settings: RouterRecipe | None = None,
    seed: int = 0,
    *,
    base_digest: str,
    on_step: Callable[[Progress], None] = lambda _progress: None,
) -> TunedRouter:
    """Tunes the router of one composition.

    Args:
        decoder: the base; not changed.
        experts: the members by bundle digest, with their own rows; not changed.
        proxies: per member, the public documents that stand for its text.
        public: other public documents.
        tokenizer: the base's.
        settings: of the optimisation.
        seed: of the order of rows.
        base_digest: of the base bundle.
        on_step: called after every optimizer step.

    Returns:
        The tuned rows; the same arguments give the same digest on one machine.

    Raises:
        DatasetRefused: a member has no proxies, or a share does not fill one row.
        TrainingDiverged: the loss is not finite or has run away.
    """
    recipe = settings or RouterRecipe()
    members = sorted(experts)
    if not members or set(proxies) != set(members):
        raise DatasetRefused(
            "Router tuning needs proxy documents for every member and for nobody else.",
            without=sorted(set(members) - set(proxies)),
            unknown=sorted(set(proxies) - set(members)),
        )
    parts = {
        name: pack(documents, tokenizer, sequence_tokens=recipe.sequence_tokens, seed=seed)
        for name, documents in [*((member, proxies[member]) for member in members), ("public", public)]
    }
    packed, share = _equal_shares(list(parts.values()), most_reuse=recipe.most_reuse)
    objective = RouterObjective(
        decoder,
        [experts[member] for member in members],
        logit_z_loss=recipe.logit_z_loss,
        router_z_loss=recipe.router_z_loss,
    )
    outcome = TrainingRun(objective, packed, recipe, seed=seed).train(on_step=on_step)
    if not outcome.finished:
        raise TrainingError("Router tuning ended before its last step; tune again.")
    rows = dict(zip(members, objective.member_rows(), strict=True))
    shape = decoder.shape
    manifest = TunedRouterManifest(
        base_digest=base_digest,
        members=tuple(members),
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        weights_digest=digest_bytes(rows_to_bytes(rows)),
        recipe=recipe.model_dump(mode="json"),
        seed=seed,
        proxies={member: _source(proxies[member], share) for member in members},
        public=_source(public, share),
        steps=outcome.steps_done,
        final_loss=outcome.final_loss,
    )
    return TunedRouter(manifest=manifest, rows=rows)


def redo_tuning(
    tuned: TunedRouter,
    decoder: Decoder,
    experts: Mapping[str, Expert],
    proxies: Mapping[str, Sequence[Document]],
    public: Sequence[Document],
    tokenizer: TextTokenizer,
    *,
    on_step: Callable[[Progress], None] = lambda _progress: None,
) -> TunedRouter:
    """Tunes again for the members that are there now, with the settings and seed of an earlier tuning.

    It starts from the members' own rows and reads the remaining members' proxies only, so the result is the
    one that a tuning without the removed member would have had, byte for byte.

    Args:
        tuned: the earlier tuning; its rows are not read.
        decoder: the same base.
        experts: the members now, with their own (untuned) rows.
        proxies: their proxies; those of members that left are refused.
        public: other public documents.
        tokenizer: the base's.
        on_step: called after every optimizer step.

    Raises:
        RouterNeedsRedo: an expert was passed with tuned rows.
        DatasetRefused, TrainingDiverged: as ``tune_router``.
    """
    for member in sorted(experts.keys() & tuned.rows.keys()):
        own_LD = torch.stack(
            [
                experts[member].layer(layer).router.row.detach().cpu()
                for layer in range(tuned.manifest.n_layers)
            ]
        )
        if torch.equal(own_LD.float(), tuned.rows[member]):
            raise RouterNeedsRedo(
                "Tune again from the members' own rows, not from tuned ones.", member=member
            )
    return tune_router(
        decoder,
        experts,
        proxies,
        public,
        tokenizer,
        RouterRecipe.of(tuned.manifest.recipe),
        tuned.manifest.seed,
        base_digest=tuned.manifest.base_digest,
        on_step=on_step,
    )


def _equal_shares(parts: Sequence[PackedText], *, most_reuse: int) -> tuple[PackedText, int]:
    """One text with equally many rows of every part; returns it and rows a part."""
    counts = [len(part.rows_NS1) for part in parts]
    share = min(max(counts), most_reuse * min(counts))
    rows = [part.rows_NS1[np.arange(share) % len(part.rows_NS1)] for part in parts]
    return (
        PackedText(
            rows_NS1=np.concatenate(rows),
            tokens=sum(part.tokens for part in parts),
            text_bytes=sum(part.text_bytes for part in parts),
        ),
        share,
    )


def _source(documents: Sequence[Document], rows: int) -> TextSource:
    card = describe(documents, license="NOASSERTION", description="")
    return TextSource(documents=len(documents), rows=rows, merkle_root=card.merkle_root)
