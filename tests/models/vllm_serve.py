"""A real vLLM server of the shipped captioner, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

SHIPPED = Path(__file__).parents[2] / "src/uae/assets/umm1/encoder"
OPTIONS = [
    *("--enable-scale-out", "--enable-mm-embeds", "--no-enable-chunked-prefill"),
    *("--limit-mm-per-prompt", '{"image": 0, "video": 0}', "--mm-processor-cache-gb", "0"),
    *("--logprobs-mode", "processed_logprobs", "--dtype", "float32", "--max-model-len", "1024"),
    *("--max-num-batched-tokens", "4096", "--enforce-eager"),
]
SWITCHES = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
}


class VLLMServer:
    """It answers from when this is made until ``close``."""

    def __init__(self, log: Path, port: int | None = None) -> None:
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        # what `vllm serve` runs, also where the package has another name
        module = "vllm.entrypoints.openai.api_server"
        command = [sys.executable, "-m", module, "--model", str(SHIPPED), *OPTIONS, *place]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=file, env=os.environ | SWITCHES
            )
        self._wait_until_it_answers(log)

    def _wait_until_it_answers(self, log: Path) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert self._process.poll() is None, log.read_text(errors="replace")[-3000:]
            try:
                with urlopen(f"{self.url}/health"):
                    return
            except (URLError, ConnectionError):
                time.sleep(0.5)
        raise AssertionError(log.read_text(errors="replace")[-3000:])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
