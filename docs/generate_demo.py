"""Draws demo.png from demo.json: ``python docs/generate_demo.py``."""

from pathlib import Path

from rao_kernels.demo import picture

if __name__ == "__main__":
    folder = Path(__file__).parent
    picture.draw(folder / "demo.json", folder / "demo.png")
