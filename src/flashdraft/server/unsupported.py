"""The one list of what OpenAI, vLLM and SGLang clients may ask for and this server cannot do: refused, by name.

A field that the type of a request declares is supported there, so one that is listed here opens by itself.
"""

from collections.abc import Mapping
from typing import Any

from flashdraft.server.api_errors import ApiError
from flashdraft.server.fields import Fields

# field -> values that ask for nothing; None and a field that is left out never do.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "min_new_tokens": (0,),
    "include_stop_str_in_output": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "return_logprob": (False,),
    "logprob_start_len": (-1,),
    "guided_whitespace_pattern": (),
    "structural_tag": (),
    "stop_regex": (),
    "custom_logit_processor": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "skip_special_tokens": (True,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "prompt_embeds": (),
    "input_embeds": (),
    "image_data": (),
    "audio_data": (),
    "video_data": (),
    "lora_path": (),
    "session_params": (),
    "return_hidden_states": (False,),
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "reasoning": (),
    "include_reasoning": (True,),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
}


def refuse_unsupported(fields_asked: Mapping[str, Any], request_type: type[Fields], prefix: str = "") -> None:
    """Raise ApiError 400 that names the first field that asks for something this server cannot do."""
    for name, neutral in _NEUTRAL.items():
        value = fields_asked.get(name)
        if value is None or name in request_type.model_fields or any(_same(value, one) for one in neutral):
            continue
        raise ApiError(
            400, f"{prefix}{name} is not supported by this server; leave it out", f"{prefix}{name}"
        )


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and 0 is not false: ``logprobs: 0`` asks for something."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
