"""UMM-1's decoder: pixels equal the pipeline's, pictures don't depend on their batch, files load as
real ones do."""

import shutil

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn

from tests.models.real_layouts import write_sd3
from uae.models.connectors import Projector, projector_between
from uae.models.decoders.sd3 import SD3Decoder
from uae.world.models import (
    POOLED_WIDTH,
    build_projector,
    build_scheduler,
    build_transformer,
    build_vae,
)

LLM_WIDTH, TEXT_LENGTH = 24, 8


def small_transformer(dual_attention: bool = False) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        caption_projection_dim=32,
        joint_attention_dim=20,
        pooled_projection_dim=14,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,) if dual_attention else (),
    )


def small_vae(shift_factor: float | None = 0.06) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=1.53,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def small_decoder(
    shift: float = 3.0, text_length: int | None = None, dual_attention: bool = False
) -> SD3Decoder:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    transformer, vae, pooled = small_transformer(dual_attention), small_vae(), torch.randn(14)
    return SD3Decoder(
        transformer, vae, scheduler, projector_between(LLM_WIDTH, 20), pooled, text_length
    ).eval()


@pytest.fixture(scope="module")
def texts():
    """Four texts of 3, 5, 5 and 7 tokens, padded on the right with values that must not matter."""
    torch.manual_seed(2)
    mask = torch.arange(7)[None] < torch.tensor([3, 5, 5, 7])[:, None]
    return torch.randn(4, 7, LLM_WIDTH), mask


def whole(states):
    return torch.ones(states.shape[:2], dtype=torch.bool)


# --- parity ---


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("dual_attention", [False, True])  # SD3.5-large has none, -medium has some
@torch.no_grad()
def test_pixels_equal_the_pipelines(tmp_path, shift, guidance_scale, dual_attention):
    small_decoder(shift, dual_attention=dual_attention).save_pretrained(tmp_path)
    decoder = SD3Decoder.from_pretrained(tmp_path)
    states, negative = torch.randn(3, 6, LLM_WIDTH), torch.randn(1, 6, LLM_WIDTH)
    noise = torch.randn(3, *decoder.noise_shape(16, 24))

    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(tmp_path / "transformer"),
        vae=AutoencoderKL.from_pretrained(tmp_path / "vae"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler"),
        text_encoder=None,
        text_encoder_2=None,
        text_encoder_3=None,
        tokenizer=None,
        tokenizer_2=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    pooled = decoder.pooled.expand(3, -1)
    expected = pipeline(
        prompt_embeds=decoder.condition(states, whole(states)).embeds,
        negative_prompt_embeds=decoder.condition(negative, whole(negative)).embeds.expand(
            3, -1, -1
        ),
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=pooled,
        latents=noise,
        height=16,
        width=24,
        num_inference_steps=10,
        guidance_scale=guidance_scale,
        output_type="pt",
    ).images
    images = decoder.generate(states, whole(states), noise, 10, guidance_scale, negative)
    assert expected.std() > 0.05  # a picture, neither flat nor saturated
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_vae_scaling():
    decoder, images = small_decoder(), torch.rand(2, 3, 16, 16)
    mean = decoder.vae.encode(images * 2 - 1).latent_dist.mean
    torch.testing.assert_close(decoder.encode_images(images), (mean - 0.06) * 1.53)
    expected = (decoder.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(
        decoder.decode_latents(decoder.encode_images(images)), expected, atol=1e-5, rtol=0
    )
    decoder.vae.register_to_config(shift_factor=None)
    torch.testing.assert_close(decoder.encode_images(images), mean * 1.53)


# --- conditioning ---


@torch.no_grad()
def test_condition_is_projected_states_then_exact_zeros(texts):
    states, mask = texts
    decoder = small_decoder(text_length=TEXT_LENGTH)
    embeds = decoder.condition(states, mask).embeds
    assert embeds.shape == (4, TEXT_LENGTH, 20)
    for n, length in enumerate([3, 5, 5, 7]):
        torch.testing.assert_close(embeds[n, :length], decoder.projector(states[n, :length]))
        assert (embeds[n, length:] == 0).all() and (embeds[n, :length] != 0).any(-1).all()


@pytest.mark.parametrize("text_length", [None, TEXT_LENGTH])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(texts, text_length, guidance_scale):
    """Alone; with others; with more padding, on the left, of any content; in other
    micro-batches."""
    states, mask = texts
    decoder, noise = small_decoder(text_length=text_length), torch.randn(4, 4, 8, 8)
    options = {
        "num_steps": 2,
        "guidance_scale": guidance_scale,
        "negative_states": torch.randn(1, 4, LLM_WIDTH),
    }
    together = decoder.generate(states, mask, noise, **options)
    left = torch.full((4, 11, LLM_WIDTH), 1e3)
    left_mask = torch.arange(11)[None] >= 11 - mask.sum(1, keepdim=True)
    left[left_mask] = states[mask]
    for others in (
        decoder.generate(left, left_mask, noise, **options, micro_batch=3),
        decoder.generate(states.flip(0), mask.flip(0), noise.flip(0), **options).flip(0),
    ):
        torch.testing.assert_close(others, together, atol=1e-5, rtol=0)
    for n, length in enumerate([3, 5, 5, 7]):
        alone = decoder.generate(
            states[n : n + 1, :length], mask[n : n + 1, :length], noise[n : n + 1], **options
        )
        torch.testing.assert_close(alone[0], together[n], atol=1e-5, rtol=0)
    swapped = decoder.generate(states.roll(1, 0), mask.roll(1, 0), noise, **options)
    assert (swapped - together).abs().amax((1, 2, 3)).min() > 1e-3  # but it does depend on its text


@torch.no_grad()
def test_scale_one_is_no_guidance(texts):
    states, mask = texts
    decoder, noise = small_decoder(), torch.randn(4, 4, 8, 8)
    plain = decoder.generate(states, mask, noise, 4)
    with_negative = decoder.generate(states, mask, noise, 4, 1.0, torch.randn(1, 4, LLM_WIDTH))
    assert torch.equal(plain, with_negative)
    with pytest.raises(ValueError, match="needs negative_embeds"):
        decoder.generate(states, mask, noise, 4, 2.0)


@pytest.mark.parametrize("text_length", [None, TEXT_LENGTH])
@torch.no_grad()
def test_several_pictures_of_a_text_project_it_once(texts, text_length):
    states, mask = texts
    decoder, noise = small_decoder(text_length=text_length), torch.randn(12, 4, 8, 8)
    projected = []
    hook = decoder.projector.register_forward_hook(lambda *call: projected.append(len(call[2])))
    images = decoder.generate(states, mask, noise, 3, micro_batch=5)
    hook.remove()
    assert (
        sum(projected) == mask.sum()
    )  # each real token once: no padding, no repeats over pictures or steps
    one_each = decoder.generate(
        states.repeat_interleave(3, 0), mask.repeat_interleave(3, 0), noise, 3
    )
    torch.testing.assert_close(images, one_each, atol=1e-5, rtol=0)


def test_gradients_reach_states_and_projector(texts):
    states, mask = texts
    decoder = small_decoder()
    states = states.clone().requires_grad_()
    decoder.generate(states, mask, torch.randn(4, 4, 8, 8), 2).mean().backward()
    assert (states.grad[mask].abs().sum(-1) > 0).all() and (states.grad[~mask] == 0).all()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.projector.parameters()
    )


def test_unfit_inputs_are_refused(texts):
    states, mask = texts
    with pytest.raises(ValueError, match="one length, got 3 to 7 tokens"):
        small_decoder().condition(states, mask)
    with pytest.raises(ValueError, match=r"at most 6 tokens .* got one of 7"):
        small_decoder(text_length=6).condition(states, mask)
    with pytest.raises(ValueError, match="an empty one"):
        small_decoder(text_length=8).condition(states, mask & (torch.arange(4) > 0)[:, None])
    with pytest.raises(ValueError, match="got 6 for 4"):
        small_decoder().generate(states, mask, torch.randn(6, 4, 8, 8), 2)
    with pytest.raises(ValueError, match="multiples of 4 up to 32 pixels, got 16x34"):
        small_decoder().noise_shape(16, 34)
    with pytest.raises(ValueError, match="the projector's output to be 20 wide"):
        SD3Decoder(
            small_transformer(),
            small_vae(),
            build_scheduler(),
            projector_between(8, 16),
            torch.zeros(14),
        )


# --- files ---


@pytest.mark.parametrize("text_length", [None, TEXT_LENGTH])
def test_saving_and_loading(tmp_path, text_length):
    decoder = small_decoder(text_length=text_length)
    decoder.save_pretrained(tmp_path)
    loaded = SD3Decoder.from_pretrained(tmp_path, llm_width=LLM_WIDTH)
    assert loaded.text_length == text_length and loaded.scheduler.config["shift"] == 3.0
    assert loaded.state_dict().keys() == decoder.state_dict().keys()
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match=f"the LLM's width 2048, the one in .* takes {LLM_WIDTH}"):
        SD3Decoder.from_pretrained(tmp_path, llm_width=2048)
    loaded.save_pretrained(tmp_path / "again")  # which must not tell where it was loaded from
    assert not [
        file for file in (tmp_path / "again").rglob("*.json") if str(tmp_path) in file.read_text()
    ]


def test_half_precision_is_close(tmp_path):
    decoder = small_decoder(text_length=TEXT_LENGTH)
    decoder.save_pretrained(tmp_path)
    half = SD3Decoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    states, noise = torch.randn(2, 6, LLM_WIDTH), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        images = [model.generate(states, whole(states), noise, 4) for model in (decoder, half)]
    assert images[1].dtype == torch.float32
    torch.testing.assert_close(images[0], images[1], atol=0.05, rtol=0)


def test_missing_parts_are_named_together(tmp_path):
    small_decoder().save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "projector")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    (tmp_path / "pooled.safetensors").unlink()
    with pytest.raises(ValueError, match="missing") as error:
        SD3Decoder.from_pretrained(tmp_path)
    for part in (
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "give llm_width",
        "pooled.safetensors, or in its place text_encoder/config.json",
    ):
        assert part in str(error.value)
    assert "transformer/" not in str(error.value)
    with pytest.raises(ValueError, match="no/such/folder: expected a folder or a hub id"):
        SD3Decoder.from_pretrained("no/such/folder")
    with pytest.raises(
        ValueError, match="someone/sd3 is neither a folder here nor in the local cache"
    ):
        SD3Decoder.from_pretrained("someone/sd3")


# --- a folder as stabilityai/stable-diffusion-3.5-large has it ---


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory):
    """Sharded bf16 weights under the real names, two CLIP text encoders, and a T5 that must not be
    read."""
    torch.manual_seed(3)
    return write_sd3(
        tmp_path_factory.mktemp("stable-diffusion-3.5-large"), small_transformer(), small_vae()
    )


def test_a_stock_checkpoint_loads_and_embeds_the_empty_prompt_as_the_pipeline(
    stock_folder, tmp_path
):
    shards = sorted(file.name for file in (stock_folder / "transformer").glob("*.safetensors"))
    assert (
        len(shards) > 1
        and shards[0] == f"diffusion_pytorch_model-00001-of-{len(shards):05d}.safetensors"
    )
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        stock_folder, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    )
    expected = pipeline.encode_prompt("", None, None, do_classifier_free_guidance=False)[2][0]
    assert expected[:8].std() > 0.1 and expected[8:].std() > 0.1

    decoder = SD3Decoder.from_pretrained(stock_folder, llm_width=LLM_WIDTH)
    torch.testing.assert_close(decoder.pooled, expected, atol=1e-6, rtol=0)
    assert decoder.text_length is None
    for name, tensor in small_transformer().state_dict().items():
        assert torch.equal(decoder.transformer.state_dict()[name], tensor.bfloat16().float()), name
    assert [m.weight.shape for m in decoder.projector.layers if isinstance(m, nn.Linear)] == [
        (40, 24),
        (20, 40),
    ]

    decoder.save_pretrained(tmp_path)  # now with a projector, and without text encoders
    assert torch.equal(SD3Decoder.from_pretrained(tmp_path).pooled, decoder.pooled)


def test_a_stock_checkpoint_with_holes_is_refused_before_weights_are_read(stock_folder, tmp_path):
    folder = tmp_path / "sd3"
    shutil.copytree(stock_folder, folder)
    next((folder / "transformer").glob("*-00002-of-*.safetensors")).unlink()
    shutil.rmtree(folder / "tokenizer_2")
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(
        ValueError, match=r"transformer/diffusion_pytorch_model-00002-of-\d+.safetensors"
    ) as error:
        SD3Decoder.from_pretrained(folder, llm_width=LLM_WIDTH)
    assert "in its place tokenizer_2/" in str(error.value)


# --- the tiny model and the paper's sizes ---


def test_tiny_configuration():
    transformer = build_transformer()
    decoder = SD3Decoder(
        transformer, build_vae(), build_scheduler(), build_projector(192), torch.zeros(POOLED_WIDTH)
    )
    assert 4e6 < sum(p.numel() for p in transformer.parameters()) < 5.5e6
    assert decoder.noise_shape(48, 48) == (4, 12, 12)
    states = torch.randn(2, 5, 192)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        images = decoder.generate(states, whole(states), torch.randn(2, 4, 12, 12), 2)
    assert (
        images.shape == (2, 3, 48, 48) and images.dtype == torch.float32 and images.isfinite().all()
    )


def test_projector_of_the_paper():
    with torch.device("meta"):
        projector = projector_between(2048, 4096)
    shapes = {name: tuple(p.shape) for name, p in projector.named_parameters()}
    assert shapes["layers.0.weight"] == (8192, 2048) and shapes["layers.2.weight"] == (4096, 8192)
    x, small = torch.randn(3, 4), Projector(4, 6, 5)
    first, _, second = small.layers
    torch.testing.assert_close(small(x), second(nn.functional.gelu(first(x))))
