# SPDX-License-Identifier: Apache-2.0
"""A model passes through memory tensor by tensor, however large it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import json, sys
from pathlib import Path
import torch
from tokenizers import Tokenizer, models
from model_core.interop.config import parse_config, write_config
from model_core.interop.exporting import ExportTerms, export_composition
from model_core.interop.importing import ImportTerms, import_folder
from model_core.interop.names import expected_names
from model_core.interop.writer import Part, write_shards
from model_core.packing.keys import generate_key

def memory_bytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

def growth_of(act):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is held now
    before = memory_bytes("VmRSS")
    done = act()
    return done, memory_bytes("VmHWM") - before

work = Path(sys.argv[1])
layout = parse_config({
    "architectures": ["FlexOlmoForCausalLM"], "vocab_size": 2048, "hidden_size": 512,
    "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_experts": 5, "num_experts_per_tok": 2,
})
def part(name, shape):
    return Part(name=name, dtype=torch.bfloat16, shape=shape,
                load=lambda: torch.full(shape, 0.01, dtype=torch.bfloat16))
parts = [part(name, shape) for name, shape in expected_names(layout, fused=False).items()]
(work / "theirs").mkdir()
write_shards(work / "theirs", parts, shard_bytes=32 << 20)
(work / "theirs" / "config.json").write_bytes(write_config(layout, dtype="bfloat16"))
Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>")).save(
    str(work / "theirs" / "tokenizer.json")
)
terms = ImportTerms(name="big", license="MIT", trained_on="Nothing.", owner_key=generate_key(),
                    created_at_us=1, code_version="test")
result, imported = growth_of(lambda: import_folder(work / "theirs", work / "ours", terms))
_, exported = growth_of(lambda: export_composition(
    result.base, result.experts, work / "out", ExportTerms(title="x"), top_k=2))
folder = sum(part.size_bytes for part in parts)
print(json.dumps({"folder": folder, "imported": imported, "exported": exported}))
"""


def test_importing_never_holds_more_than_a_part_of_the_weights(tmp_path: Path) -> None:
    """Peak memory grows by less than 1.3 times the largest shard, a third of the folder.

    Taking it out maps what the marketplace serves once, and writes beside that one tensor at a time.
    """
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["folder"] > 95 << 20
    assert figures["imported"] < 1.3 * (32 << 20)
    assert figures["exported"] < figures["folder"] + (160 << 20)
