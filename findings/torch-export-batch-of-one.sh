#!/usr/bin/env bash
# A program that torch.export made for a batch of 1 to 64 rows, as asked, gives other results for one row, silently.
#
# The batch is Dim("batch", min=1, max=64) and the example has four rows. torch 2.13.0 exports without a word, and its
# range_constraints say 1 to 64; yet it assumes that no such size is 0 or 1. So where the model treats a single row in a
# way of its own, the program does for it what it does for many (here zeros instead of the row), and no guard refuses
# it, as one does 65 rows. With an example of one row the export is refused.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import nn


class Standardise(nn.Module):
    """Standardises over the batch, and leaves a single row, which has no deviation, as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            return x
        return (x - x.mean(0)) / (x.std(0, correction=0) + 1e-6)


def exported(model: nn.Module, rows: int) -> torch.export.ExportedProgram:
    """The model as a program for 1 to 64 rows, traced with that many."""
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(model, (torch.rand(rows, 3),), dynamic_shapes=({0: batch},))


model = Standardise()
program = exported(model, 4)
(sizes,) = program.range_constraints.values()
print(f"torch {torch.__version__}, range of the batch {int(sizes.lower)} to {int(sizes.upper)}:")
assert (int(sizes.lower), int(sizes.upper)) == (1, 64), "the range has changed"
run = program.module()
for rows in (2, 4, 64):
    many = torch.rand(rows, 3)
    assert torch.equal(run(many), model(many)), f"{rows} rows have changed"

row = torch.tensor([[1.0, 2.0, 3.0]])
by_model, by_program = model(row).tolist(), run(row).tolist()
print(f"  one row: the model {by_model}, the program {by_program}")
assert (by_model, by_program) == ([[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]), "the behaviour has changed"

for what, refused in (
    ("65 rows", lambda: run(torch.rand(65, 3))),
    ("an example of one row", lambda: exported(model, 1)),
):
    try:
        refused()
    except Exception as error:
        print(f"  {what}: {type(error).__name__}")
    else:
        raise SystemExit(f"no longer refused: {what}")
PY
