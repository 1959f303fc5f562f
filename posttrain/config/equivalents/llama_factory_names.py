"""LLaMA-Factory's settings and ours. Read from its hparams of 2026-08 (commit ff6d4d1)."""

from __future__ import annotations

from dataclasses import replace

from posttrain.config.equivalents import trainer_names
from posttrain.config.equivalents.entry import Equivalent, Tool, join_groups

TEMPLATE = "The tokenizer's own chat template is used unless model.chat_template names one; LLaMA-Factory has its templates in code"
DATASET = (
    "Names a file, a folder or a Hub dataset. LLaMA-Factory looks names up in dataset_info.json, which the import reads where "
    "dataset_dir has it"
)

_OWN_DEFAULTS = {"learning_rate": 5e-5}


def _training() -> tuple[Equivalent, ...]:
    return tuple(
        replace(entry, default=_OWN_DEFAULTS.get(entry.name, entry.default)) for entry in trainer_names.TRAINING
    )


EQUIVALENTS = (
    Equivalent("model_name_or_path", "model.base"),
    Equivalent("model_revision", "model.revision"),
    Equivalent("trust_remote_code", "model.trust_remote_code", rule="trust_remote_code"),
    Equivalent("flash_attn", "model.attention", rule="attention"),
    Equivalent("template", "model.chat_template", rule="template", difference=TEMPLATE, comment=""),
    Equivalent("stage", "finetuning_type", rule="stage", difference="DPO follows an SFT of this pipeline", comment=""),
    Equivalent(
        "finetuning_type", "model.method", rule="method", default="lora",
        difference="Here, finetuning_type selects the stages to run (sft, dpo or both)", comment="",
    ),
    Equivalent("quantization_bit", "model.method", rule="method"),
    Equivalent("lora_rank", "model.lora.rank", rule="lora", default=8),
    Equivalent("lora_alpha", "model.lora.alpha", rule="lora", default="2 x lora_rank"),
    Equivalent("lora_dropout", "model.lora.dropout", rule="lora"),
    Equivalent("lora_target", "model.lora.target_modules", rule="lora_target"),
    Equivalent("dataset", "data.sources[].path", rule="llama_factory_dataset", difference=DATASET, comment=""),
    Equivalent("dataset_dir", "data.sources[].path", rule="llama_factory_dataset"),
    Equivalent("max_samples", "data.sources[].limit", rule="llama_factory_dataset"),
    Equivalent("interleave_probs", "data.sources[].weight", rule="llama_factory_dataset"),
    Equivalent(
        "val_size", "data.validation_size", rule="validation_size",
        difference="data.test_size, held out for the final verdict, comes on top",
    ),
    *_training(),
    Equivalent("pure_bf16", "model.precision", rule="bf16", difference=trainer_names.PRECISION, comment=""),
    Equivalent(
        "disable_gradient_checkpointing", "dpo.gradient_checkpointing", values={True: False, False: True},
        difference="The opposite of it", comment="",
    ),
    Equivalent(
        "cutoff_len", "dpo.max_length", rule="max_length", default=2048,
        difference="LLaMA-Factory shortens prompt and response in proportion; here a prompt is cut to max_prompt_length from its "
        "beginning, and the rest of a response that does not fit is cut off",
    ),
    Equivalent("pref_beta", "dpo.beta"),
    Equivalent("pref_loss", "dpo.loss_type", rule="loss_type", values={name: name for name in ("sigmoid", "hinge", "ipo")}),
    Equivalent(
        "pref_ftx", "dpo.loss_weights", rule="sft_weight",
        difference="An SFT term is one of the losses: `loss_type: [sigmoid, sft]` and `loss_weights: [1, pref_ftx]`; it is the "
        "mean over all tokens, LLaMA-Factory's over each response's mean",
    ),
    Equivalent(
        "dpo_label_smoothing", "dpo.label_smoothing", rule="label_smoothing",
        difference="Its smoothed sigmoid loss (cDPO) is not offered; `loss_type: robust` corrects for flipped labels",
    ),
    Equivalent("early_stopping_steps", "dpo.early_stopping_patience"),
)  # fmt: skip

NOT_NEEDED = join_groups(
    trainer_names.NOT_NEEDED,
    {
        "batches, padding and caches of the data are handled by the project": "overwrite_cache preprocessing_batch_size "
        "preprocessing_num_workers tokenized_path data_shared_file_system ignore_pad_token_for_loss buffer_size "
        "eval_on_each_dataset",
        "MLflow draws the curves": "plot_loss compute_accuracy include_effective_tokens_per_second print_param_status",
        "secrets are read from the environment, never from a config": "hf_hub_token ms_hub_token om_hub_token swanlab_api_key "
        "swanlab_lark_secret swanlab_lark_webhook_url",
        "metrics go to MLflow, not to SwanLab or a profiler": "use_swanlab swanlab_* enable_torch_profiler profiler_* "
        "profile_modules",
        "`posttrain export` writes a model": "export_*",
        "these are settings for generating, serving or other stages": "do_sample temperature top_p top_k num_beams max_length "
        "max_new_tokens repetition_penalty length_penalty skip_special_tokens eval_num_beams infer_backend infer_dtype vllm_* "
        "sglang_* use_kv_cache predict_with_generate generation_* ppo_* kto_* reward_model* simpo_gamma",
        "the model is loaded by the project": "cache_dir use_fast_tokenizer low_cpu_mem_usage device_map offload_folder "
        "compute_dtype",
        "a 4-bit base is always NF4 by bitsandbytes, quantised twice": "quantization_type double_quantization "
        "quantization_device_map",
        "one step runs on one node; dpo.processes sets the number of processes": "ray_* master_addr master_port",
    },
)

NOT_SUPPORTED = join_groups(
    trainer_names.NOT_SUPPORTED,
    {
        "evaluation sets go under evaluation.sets, and validation rows are taken from the training data": "eval_dataset",
        "the reference stays the SFT checkpoint": "ref_model ref_model_*",
        "DPO starts at an SFT checkpoint of this project: merge the adapter into the base first": "adapter_name_or_path "
        "adapter_folder create_new_adapter",
        "plain LoRA is the only adapter": "use_rslora use_dora pissa_* loraplus_* oft_* module_dropout",
        "only the adapter is trained": "additional_target freeze_* use_llama_pro",
        "AdamW is the only optimizer": "use_galore galore_* use_apollo apollo_* use_badam badam_* use_adam_mini use_muon",
        "the base of an adapter is held in 16 or 4 bits by bitsandbytes": "quantization_method fp8 fp8_*",
        "length-desensitised DPO is not offered": "ld_alpha",
        "bco_pair has no running mean here; name it in dpo.loss_type and dpo.loss_weights to mix it": "pref_bco_weight",
        "sources are read one after another, or in shares by `weight`": "mix_strategy",
        "datasets are read as a whole": "streaming",
        "only the last response of a row is trained": "train_on_prompt mask_history",
        "rows are not packed; flat batches have no padding": "packing neat_packing",
        "the chat template decides how tools, system messages and thinking are written": "tool_format default_system "
        "enable_thinking preserve_thinking",
        "the tokenizer is used as it is": "resize_vocab split_special_tokens add_tokens add_special_tokens "
        "new_special_tokens_config init_special_tokens",
        "the model is used as it is": "rope_scaling shift_attn mixture_of_depths moe_aux_loss_coef upcast_layernorm "
        "upcast_lmhead_output train_from_scratch use_v1_kernels block_diag_attn model_max_length",
        "other training engines are not offered": "use_unsloth use_unsloth_gc use_reentrant_gc enable_liger_kernel use_mca "
        "use_megatron_bridge megatron_bridge_args use_hyper_parallel hyper_parallel_* use_kt kt_*",
        "these losses belong to SFT": "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha",
        "the data is shuffled": "disable_shuffling",
        "models for text only": "media_dir image_* video_* audio_* use_audio_in_video crop_to_patches",
    },
)

SAME = {
    **trainer_names.SAME,
    "mix_strategy": ("concat",),
    "quantization_method": ("bnb", "bitsandbytes"),
    "enable_thinking": (True,),
    "use_reentrant_gc": (True,),
    "init_special_tokens": ("noise_init",),
}

LLAMA_FACTORY = Tool(
    key="llama-factory",
    name="LLaMA-Factory",
    model_key="model_name_or_path",
    data_keys=("dataset",),
    equivalents=EQUIVALENTS,
    not_needed=NOT_NEEDED,
    not_supported=NOT_SUPPORTED,
    same=SAME,
)
