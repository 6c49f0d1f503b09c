"""docs/train.csv and docs/train.png: losses of examples/train.py on a CPU, by PyTorch's operators
and by our kernels in Triton's interpreter.

python tools/train.py    some minutes a seed
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import pandas as pd
from matplotlib import pyplot
from PIL import Image

FIGURES, PICTURE = Path("docs/train.csv"), Path("docs/train.png")
SEEDS, STEPS, OVER, COLOURS = (0, 1, 2), 200, 10, 64
IMPLS = {  # name, colour, line, width
    "eager": ("PyTorch, eager", "#2f6fb0", "-", 2.4),
    "triton": ("our kernels, Triton's interpreter", "#c8641b", "--", 1.2),
}


def losses(impl: str, seed: int) -> "pd.Series[float]":
    """Means over every OVER steps, by the last of these."""
    with TemporaryDirectory() as folder:
        flags = f"--tiny --impl {impl} --seed {seed} --steps {STEPS} --every {STEPS} --out {folder}"
        alone = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "examples/train.py", *flags.split()]
        subprocess.run(command, env=alone, check=True)
        found = pd.read_csv(Path(folder, "losses.csv"), index_col="step")["loss"]
    return found.groupby((found.index + OVER - 1) // OVER * OVER).mean()


def draw() -> None:
    """A line a run, on the spread of PyTorch's seeds."""
    matplotlib.use("Agg")
    table = pd.read_csv(FIGURES, index_col="step")
    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), dpi=110, layout="constrained")
    eager = table.filter(like="eager")
    axes.fill_between(table.index, eager.min(axis=1), eager.max(axis=1), color=IMPLS["eager"][1],
                      alpha=0.15, lw=0, label="spread of PyTorch's seeds")  # fmt: skip
    for impl, (name, colour, line, width) in IMPLS.items():
        lines = axes.plot(table.filter(like=impl), line, color=colour, lw=width)
        lines[0].set_label(name)
    axes.set(xlabel="step", ylabel=f"training loss, mean of {OVER} steps")
    title = f"measured: CPU, fp32, examples/train.py --tiny, {len(SEEDS)} seeds each"
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE)
    with Image.open(PICTURE) as image:
        image.convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    runs = {f"{impl}_{seed}": losses(impl, seed) for impl in IMPLS for seed in SEEDS}
    pd.DataFrame(runs).to_csv(FIGURES, float_format="%.5f")
    draw()
