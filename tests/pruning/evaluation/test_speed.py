import torch
from transformers import PreTrainedModel

from pruning.evaluation.speed import measure_speed


def test_speed_is_measured_on_a_copy_and_says_how(tiny_llama: PreTrainedModel) -> None:
    speed = measure_speed(tiny_llama, dtype=torch.bfloat16)
    assert speed.prefill_tokens_per_second > speed.decode_tokens_per_second > 0
    assert speed.protocol["dtype"] == "bfloat16"
    assert speed.protocol["threads"] == torch.get_num_threads()
    assert next(tiny_llama.parameters()).dtype == torch.float32
