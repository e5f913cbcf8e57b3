"""The pictures of docs/whoami.md: ``python -m tests.browser.pictures [FOLDER]``."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.chromium import PHONE, Browser, Look, browsing
from tests.browser.scenes import SCENES, playing

_FOLDER = Path(__file__).parent.parent.parent / "docs" / "images"
_COLOURS = 96
# Taller than a window: as far as the preamble's fields and TLVs.
_TALL = 1280, 1480


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as profile, browsing(Path(profile)) as browser:
        for name in SCENES:
            take(browser, name, Look(*_TALL, "light"), folder / f"whoami-{name}.png")
        take(browser, "alb", Look(*PHONE, "dark"), folder / "whoami-phone.png")


def take(browser: Browser, name: str, look: Look, path: Path) -> None:
    scene = SCENES[name]
    with playing(scene) as url:
        browser.open(url, look, scene.headers)
        picture = Image.open(io.BytesIO(browser.picture())).convert("RGB")
    # The page has few colours, and a document is not to weigh more than it says.
    picture.quantize(_COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _FOLDER)
