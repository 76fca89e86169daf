"""Vision-language models: fewer visual tokens for the language model, or all of them at their places."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from small_transformers import lively
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

import entropatch

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = 60
V: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
T: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
GEMMA: dict[str, Any] = {**T, "model_type": "gemma", "head_dim": 8}
CLIP: dict[str, Any] = {**V, "model_type": "clip_vision_model"}
SIGLIP: dict[str, Any] = {**V, "model_type": "siglip_vision_model", "vision_use_head": False}
OPT: dict[str, Any] = {
    **T, "model_type": "opt", "ffn_dim": 16, "max_position_embeddings": 64, "word_embed_proj_dim": 16,
}  # fmt: skip
QFORMER: dict[str, Any] = {
    "vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "encoder_hidden_size": 24,
}  # fmt: skip
QWEN: dict[str, Any] = {
    **{key: value for key, value in T.items() if key != "model_type"},
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
}  # fmt: skip
TILED: dict[str, Any] = {"image_sizes": torch.tensor([[32, 32]])}

# name: (vision config, text config, other fields, placeholders of an image, tiles, other inputs)
MERGING: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], int, int | None, dict[str, Any]]] = {
    "VipLlava": (CLIP, T, {"image_token_index": IMAGE, "vision_feature_layers": [-2, -3]}, 16, None, {}),
    "Gemma3": (
        SIGLIP, {**GEMMA, "model_type": "gemma3_text"}, {"image_token_index": IMAGE, "mm_tokens_per_image": 4}, 4, None,
        {},
    ),
    "AyaVision": (
        SIGLIP, T, {"image_token_index": IMAGE, "downsample_factor": 2, "adapter_layer_norm_eps": 1e-6}, 4, None, {},
    ),
    "InternVL": (
        {**V, "model_type": "internvl_vision", "image_size": [32, 32], "patch_size": [8, 8]}, T,
        {"image_token_id": IMAGE}, 4, None, {},
    ),
    "LlavaNext": (CLIP, T, {"image_token_index": IMAGE, "image_grid_pinpoints": [[32, 32]]}, 36, 2, TILED),
    "LlavaOnevision": (
        SIGLIP, T, {"image_token_index": IMAGE, "video_token_index": 61, "image_grid_pinpoints": [[32, 32]]}, 36, 2,
        TILED,
    ),
    "Idefics3": (V, T, {"image_token_id": IMAGE, "scale_factor": 2}, 4, 1, {}),
    "SmolVLM": (V, T, {"image_token_id": IMAGE, "scale_factor": 2}, 4, 1, {}),
}  # fmt: skip


def made(name: str, vision: dict[str, Any], text: dict[str, Any], **fields: Any) -> Any:
    config = getattr(hf, f"{name}Config")(vision_config=vision, text_config=text, **fields)
    torch.manual_seed(0)
    return lively(getattr(hf, f"{name}ForConditionalGeneration")(config))


def llava(**fields: Any) -> Any:
    return made("Llava", CLIP, T, image_token_index=IMAGE, **fields)


def paligemma() -> Any:
    return made("PaliGemma", SIGLIP, GEMMA, image_token_index=IMAGE, projection_dim=16)


def prompt(placeholders: int) -> dict[str, Tensor]:
    ids = torch.tensor([[1, *[IMAGE] * placeholders, 5, 6]])
    return {"input_ids": ids, "token_type_ids": (ids == IMAGE).long()}


def given(name: str, placeholders: int) -> dict[str, Tensor]:
    inputs = prompt(placeholders)
    return inputs if name in ("PaliGemma", "Gemma3") else {"input_ids": inputs["input_ids"]}


def pixels(tiles: int | None = None) -> Tensor:
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    return x if tiles is None else torch.stack([x] * tiles, dim=1)


@pytest.mark.parametrize("name", MERGING)
def test_models_that_merge_neighbours_are_given_all_patches_at_their_places(name: str) -> None:
    vision, text, fields, placeholders, tiles, other = MERGING[name]
    model = made(name, vision, text, **fields)
    inputs = {**given(name, placeholders), "pixel_values": pixels(tiles), **other}
    with torch.no_grad():
        stock = model(**inputs).logits
        entropatch.prune_(model, keep_rate=1.0)
        assert torch.equal(model(**inputs).logits, stock)
        entropatch.prune_(model, keep_rate=0.5)
        with entropatch.trace(model) as trace:
            pruned = model(**inputs).logits
    assert trace.counts == [16, 8, 4, 2]
    assert pruned.shape == stock.shape
    assert not torch.allclose(pruned, stock)
    assert entropatch.fit_processor_(None, model) is None


@pytest.mark.parametrize("name", ["Llava", "PaliGemma"])
@pytest.mark.parametrize("keep_rate", [1.0, 0.5])
def test_the_language_model_reads_the_tokens_that_are_left(name: str, keep_rate: float) -> None:
    model = llava() if name == "Llava" else paligemma()
    stock = copy.deepcopy(model)
    entropatch.prune_(model, keep_rate=keep_rate, blocks=(0, 2, 3))
    tower = model.model.vision_tower
    blocks = 3 if name == "Llava" else None  # LLaVA reads what enters the last layer
    left = entropatch.surgery.tokens_left(model, 16, blocks)
    assert left == (16 if keep_rate == 1.0 else 4 if name == "Llava" else 2)
    inputs = {**given(name, left), "pixel_values": pixels()}
    with torch.no_grad():
        logits = model(**inputs).logits
        output = tower(pixels(), output_hidden_states=True)
        read = output.hidden_states[-2][:, 1:] if name == "Llava" else output.last_hidden_state
        features = model.model.multi_modal_projector(read)
        embeds = stock.get_input_embeddings()(inputs["input_ids"])
        embeds = embeds.masked_scatter((inputs["input_ids"] == IMAGE)[..., None], features)
        beside = {key: x for key, x in inputs.items() if key not in ("input_ids", "pixel_values")}
        assert torch.allclose(stock(inputs_embeds=embeds, **beside).logits, logits, atol=1e-5)
        if keep_rate == 1.0:
            assert torch.equal(stock(**inputs).logits, logits)
        else:
            with pytest.raises(ValueError, match="do not match"):
                model(**{**given(name, 16), "pixel_values": pixels()})


def tokenizer() -> Any:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "what": 5, "is": 6, "<unk>": 7, "<image>": IMAGE}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    named: dict[str, Any] = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens={"image_token": "<image>"}, **named)


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_llavas_processor_writes_as_many_placeholders(strategy: str) -> None:
    model = llava(vision_feature_select_strategy=strategy)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy=strategy, num_additional_image_tokens=1
    )
    whole = int(strategy == "full")
    photo = Image.new("RGB", (40, 50), (120, 30, 60))
    for setting, patches in (({"keep_rate": 0.5}, 4), ({"keep_rate": 0.9}, 14), ({"method": "evit"}, None), (None, 16)):
        if setting is None:
            entropatch.unprune_(model)
        else:
            entropatch.prune_(model, **setting)
        number = entropatch.fit_processor_(processor, model)
        assert patches is None or number == patches + whole
        inputs = processor(images=photo, text="<image> what is", return_tensors="pt")
        assert int((inputs["input_ids"] == IMAGE).sum()) == number
        with torch.no_grad():
            assert model(**inputs).logits.isfinite().all()
    entropatch.prune_(model, keep_rate=0.5)
    entropatch.fit_processor_(processor, model)
    inputs = processor(images=photo, text="<image> what is", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_llava_with_a_tower_that_has_no_class_token() -> None:
    model = made("Llava", SIGLIP, T, vision_feature_select_strategy="full", image_token_index=IMAGE)
    processor = type("LlavaProcessor", (), {"vision_feature_select_strategy": "full"})()
    entropatch.prune_(model, keep_rate=0.5)
    number = entropatch.fit_processor_(processor, model)
    assert number == 4
    assert processor.num_additional_image_tokens == 4 - 16
    with torch.no_grad():
        assert model(**given("Llava", number), pixel_values=pixels()).logits.isfinite().all()
    first = made("Llava", SIGLIP, T, vision_feature_select_strategy="default", image_token_index=IMAGE)
    with pytest.raises(entropatch.UnsupportedModelError, match='use vision_feature_select_strategy="full"'):
        entropatch.prune_(first, keep_rate=0.5)


def test_paligemmas_processor_and_others() -> None:
    class PaliGemmaProcessor:
        image_seq_length = 16

    model, processor = entropatch.prune_(paligemma(), keep_rate=0.5), PaliGemmaProcessor()
    assert entropatch.fit_processor_(processor, model) == processor.image_seq_length == 2
    with pytest.raises(entropatch.UnsupportedModelError, match="how a list counts the visual tokens of a PaliGemma"):
        entropatch.fit_processor_([], model)
    with pytest.raises(entropatch.UnsupportedModelError, match="pass the whole model"):
        entropatch.fit_processor_(processor, model.model.vision_tower)
    with pytest.raises(entropatch.UnsupportedModelError, match="reads the tokens of a batch as one tensor"):
        entropatch.prune_(model, schedule=entropatch.CumulativeImportance(share=0.5))
    layered = entropatch.prune_(llava(vision_feature_layer=[-2, -4]), keep_rate=0.5)
    with pytest.raises(entropatch.UnsupportedModelError, match="between which patches are pruned"):
        entropatch.fit_processor_(type("LlavaProcessor", (), {})(), layered)


def test_queries_read_any_number_of_tokens() -> None:
    model = made(
        "Blip2", V, OPT, qformer_config=QFORMER, num_query_tokens=3, image_token_index=IMAGE, image_text_hidden_size=8
    )
    inputs = {**given("Blip2", 3), "pixel_values": pixels()}
    with torch.no_grad():
        stock = model(**inputs).logits
        entropatch.prune_(model, keep_rate=1.0)
        assert torch.equal(model(**inputs).logits, stock)
        entropatch.prune_(model, keep_rate=0.5)
        output = model(**inputs)
    assert output.vision_outputs.last_hidden_state.shape[1] == 3
    assert entropatch.fit_processor_(type("Blip2Processor", (), {})(), model) is None


def test_packed_towers_are_refused() -> None:
    vision: dict[str, Any] = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16}
    with torch.device("meta"):
        model = hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(vision_config=vision, text_config=QWEN))
    with pytest.raises(entropatch.UnsupportedModelError, match="Qwen2VLForConditionalGeneration is not supported"):
        entropatch.prune_(model)
