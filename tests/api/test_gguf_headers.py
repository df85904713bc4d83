"""The sizes of a GGUF model are read from its header, whatever else the file holds."""

import struct
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.gguf_headers import config_of_gguf
from pruning.errors import InvalidModel
from pruning.models.architecture import read_architecture


def write_model(path: Path, *, tied: bool = True, intermediate: int | list[int] = 128) -> Path:
    """A GGUF header as gguf-py writes it, with one small tensor behind it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"token {index}" for index in range(300)])
    writer.add_token_scores([0.0] * 300)
    for name in ["token_embd.weight"] + ([] if tied else ["output.weight"]):
        writer.add_tensor(name, np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_sizes_are_those_that_were_written(tmp_path: Path) -> None:
    found = read_architecture(config_of_gguf(write_model(tmp_path / "a.gguf")))
    assert (found.vocab_size, found.hidden_size, found.tied) == (300, 64, True)
    assert [layer.intermediate_size for layer in found.layers] == [128, 128]
    assert [layer.num_key_value_heads for layer in found.layers] == [2, 2]


def test_a_head_of_its_own_is_noticed(tmp_path: Path) -> None:
    assert not read_architecture(config_of_gguf(write_model(tmp_path / "a.gguf", tied=False))).tied


def test_layers_may_differ_in_width(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.gguf", intermediate=[96, 32])
    layers = read_architecture(config_of_gguf(path)).layers
    assert [layer.intermediate_size for layer in layers] == [96, 32]


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole and sound file."""
    return write_model(tmp_path_factory.mktemp("gguf") / "a.gguf").read_bytes()


@given(data=st.data())
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_header_is_refused_or_read_but_never_trusted(
    header: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(header) - 8))
    planted = struct.pack("<Q", data.draw(st.sampled_from([0, 2**63, 2**64 - 1, 2**32, 12])))
    end = data.draw(st.integers(0, len(header)))
    path = tmp_path / f"{at}-{end}-{planted.hex()}.gguf"
    path.write_bytes((header[:at] + planted + header[at + 8 :])[:end])
    with suppress(InvalidModel):
        assert config_of_gguf(path)["model_type"]


def test_another_file_under_that_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(InvalidModel, match="GGUF"):
        config_of_gguf(path)
