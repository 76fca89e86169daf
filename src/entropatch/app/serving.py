"""The server of the page."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from entropatch.app.doors import Doors, free_port
from entropatch.app.explorer import Explorer
from entropatch.app.interface import build
from entropatch.extras import require

STYLE = Path(__file__).with_name("style.css")


def serve(
    explorer: Explorer,
    models: list[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    names: Iterable[str] = (),
    upload_mb: int = 20,
    wait: bool = True,
) -> tuple[Any, str]:
    """Serve the page until interrupted.

    Args:
        explorer: what answers.
        models: names to offer; the first is chosen. Any other may be typed in.
        host: address to listen on; 127.0.0.1 and ::1 are reached from this machine only.
        port: 0 takes any free one.
        names: under which the page may be asked for besides `host`, such as that of a proxy.
        upload_mb: largest file that may be uploaded, in megabytes.
        wait: return only when interrupted.

    Returns:
        The Gradio page, which can be closed, and its address.

    Raises:
        ImportError: Gradio is not installed. OSError: the port is taken, or the address is none of this machine.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    gr: Any = require("gradio", "app")
    page = build(gr, explorer, models)
    fonts = ["system-ui", "Segoe UI", "DejaVu Sans", "sans-serif"]
    served, local, _ = page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port or free_port(host),
        share=False,
        inbrowser=False,
        quiet=True,
        show_error=True,
        max_file_size=upload_mb * 10**6,
        prevent_thread_lock=True,
        theme=gr.themes.Base(font=fonts, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"]),
        css=STYLE.read_text(encoding="utf-8"),
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    # In front of everything, Gradio's own answers to other origins included, which it puts outside of any other.
    behind = served.middleware_stack or served.build_middleware_stack()
    served.middleware_stack = Doors(behind, host, names)
    if wait:
        page.block_thread()
    return page, local
