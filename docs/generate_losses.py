"""Write docs/losses.md from the table of losses."""

from pathlib import Path

from rao_kernels.cli.losses import markdown
from rao_kernels.losses import LOSSES

if __name__ == "__main__":
    Path(__file__).with_name("losses.md").write_text(markdown(LOSSES.values()), encoding="utf-8")
