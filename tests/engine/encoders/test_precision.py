import torch

from engine.encoders import EncoderConfig
from engine.encoders.precision import has_amx_bfloat16, resolve_encoder, resolve_precision

CPU = torch.device("cpu")


def test_given_precisions_stay():
    for precision in ("float32", "bfloat16", "float16"):
        assert resolve_precision(precision, CPU) == precision


def test_auto_is_bfloat16_where_the_processor_has_tiles(tmp_path):
    with_tiles, without = tmp_path / "amx", tmp_path / "avx"
    with_tiles.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16 avx512_bf16 amx_tile\n")
    without.write_text("processor\t: 0\nmodel name\t: amx_bf16\nflags\t\t: fpu avx512_bf16\n")
    assert resolve_precision("auto", CPU, with_tiles) == "bfloat16"
    assert resolve_precision("auto", CPU, without) == "float32"
    assert resolve_precision("auto", CPU, tmp_path / "missing") == "float32"
    assert not has_amx_bfloat16("")


def test_resolved_configuration_states_the_precision():
    config = resolve_encoder(EncoderConfig(precision="auto"), CPU)
    assert config.precision in ("float32", "bfloat16")
    assert resolve_encoder(config, CPU) == config
    assert resolve_encoder(EncoderConfig(name="descriptor", precision="auto"), CPU).precision == "float32"
