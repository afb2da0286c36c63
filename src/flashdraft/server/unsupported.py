"""The one list of what OpenAI, vLLM and SGLang clients may ask for and this server cannot do: refused, by name.

A field that the type of a request declares is supported there, so one that is listed here opens by itself.
"""

from collections.abc import Mapping
from typing import Any

from flashdraft.server.api_errors import ApiError
from flashdraft.server.fields import Fields

_MEDIA = {
    "ec_transfer_params",
    "encoder_urls",
    "image_max_dynamic_patch",
    "images_config",
    "kv_hints",
    "kv_transfer_params",
    "lora_id",
    "max_dynamic_patch",
    "media_io_kwargs",
    "min_dynamic_patch",
    "mm_content_hashes",
    "mm_hashes",
    "mm_payload",
    "mm_processor_kwargs",
    "multi_item_delimiter_indices",
    "positional_embed_overrides",
    "token_indices_to_pool",
    "video_config",
    "video_max_dynamic_patch",
}  # and what moves caches between servers
_REPORTS = {
    "need_wait_for_mm_inputs",
    "return_bytes",
    "return_cached_tokens_details",
    "return_entropy",
    "return_flat_raw_output_top_logprobs",
    "return_flat_raw_top_logprobs",
    "return_flat_raw_top_logprobs_b64",
    "return_indexer_topk",
    "return_input_ids_in_sglext",
    "return_mm_kwargs",
    "return_output_ids_in_sglext",
    "return_prompt_text",
    "return_prompt_token_ids",
    "return_routed_experts",
    "return_sampling_mask",
    "return_spec_tokens_details",
    "return_token_offsets",
    "return_token_strs",
    "return_weight_versions",
    "separate_reasoning",
    "stream_reasoning",
    "use_audio_in_video",
}

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
    "thinking_token_budget": (),
    "max_thinking_tokens": (),
    "require_reasoning": (False,),
    "thinking": (),
    "verbosity": ("medium",),
    "documents": ([],),
    "input_ids": (),
    "prompt_token_ids": (),
    "length_penalty": (1,),
    "beam_width": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "token_ids_logprob": ([],),
    "top_logprobs_num": (0,),
    "sampling_logprobs_mode": (),
    "return_text_in_logprobs": (False,),
    "sampling_seed": (),
    "no_stop_trim": (False,),
    "stop_regex_max_len": (),
    "ebnf_full_assistant": (False,),
    "spaces_between_special_tokens": (True,),
    "truncation": ("disabled",),
    "truncation_side": ("left",),
    "truncate_prompt_tokens": (),
    "stream_interval": (1,),
    "repetition_detection": (),
    "watermark": (),
    "watermarking": (),
    "custom_params": ({},),
    "custom_labels": ({},),
    "vllm_xargs": ({},),
    "cache_salt": (),
    "extra_key": (),
    "priority": (0,),
    "max_tool_calls": (),
    "prompt": (),
    "include": ([],),
    "moderation": (),
    # Claude Code says that it keeps all thoughts.
    "context_management": (
        [],
        {"edits": []},
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    ),
    "enable_response_messages": (False,),
    "previous_input_messages": (),
    "tools_choice": (),
    "task": (),
    "container": (),
    "mcp_servers": ([],),
    "access_programs": ([],),
    "background_options": (),
    "image": (),
    "chat_template_kwargs": ({},),
    "parallel_tool_calls": (True,),
    "ngram_corpus_id": (),
    **dict.fromkeys(_MEDIA, ({}, [])),
    **dict.fromkeys(_REPORTS, (False,)),
}

# What names, routes or bills a request and changes nothing of its answer.
TOLERATED = {
    "bootstrap_host",
    "bootstrap_pair_key",
    "bootstrap_port",
    "bootstrap_room",
    "client_metadata",
    "conversation_id",
    "data_parallel_rank",
    "decode_tp_size",
    "disagg_prefill_dp_rank",
    "external_trace_header",
    "http_worker_ipc",
    "is_normalized",
    "log_metrics",
    "metadata",
    "no_logs",
    "num_items_assigned",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "received_time",
    "request_id",
    "rid",
    "routed_dp_rank",
    "routed_experts_prompt_start",
    "routed_experts_start_len",
    "routing_key",
    "safety_identifier",
    "service_tier",
    "session_id",
    "stop_regex_strs",
    "stop_str_max_len",
    "stream_options",
    "stop_strs",
    "store",
    "user",
    "user_profile_id",
    "workspace_id",
    "inference_geo",
    "cache_control",
    "diagnostics",
    "speed",
}


def known_fields() -> frozenset[str]:
    """Fields that are refused where they ask for something, and those that may be left unheard."""
    return frozenset(_NEUTRAL) | TOLERATED


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
