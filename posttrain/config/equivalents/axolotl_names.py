"""axolotl's settings and ours. Read from its schemas of 2026-07 (commit 067b021)."""

from __future__ import annotations

from posttrain.config.equivalents import trainer_names
from posttrain.config.equivalents.entry import Equivalent, Tool, join_groups

TEMPLATE = (
    "The tokenizer's own chat template is used unless model.chat_template names one; axolotl has its templates in code"
)
TYPE = "The layout of rows is recognised; the type's column names go into `columns`, and its chat template into model.chat_template"
LONG_ROWS = (
    "axolotl drops rows that exceed it (excess_length_strategy); here a prompt is cut to max_prompt_length from its beginning, "
    "and the rest of a response is cut off; cut rows are counted"
)
ATTENTION_FLAG = "One setting of several values instead of a flag for each"

EQUIVALENTS = (
    Equivalent("base_model", "model.base"),
    Equivalent("revision_of_model", "model.revision"),
    Equivalent("trust_remote_code", "model.trust_remote_code", rule="trust_remote_code"),
    Equivalent("attn_implementation", "model.attention", rule="attention"),
    *(
        Equivalent(name, "model.attention", rule="attention_flag", difference=ATTENTION_FLAG, comment="")
        for name in ("flash_attention", "sdp_attention", "flex_attention", "eager_attention")
    ),
    Equivalent("chat_template", "model.chat_template", rule="template", difference=TEMPLATE, comment=""),
    Equivalent("chat_template_jinja", "model.chat_template", rule="chat_template_path"),
    Equivalent("rl", "dpo.loss_type", rule="rl", difference="DPO always follows an SFT of this pipeline", comment=""),
    Equivalent("adapter", "model.method", rule="method"),
    Equivalent("load_in_4bit", "model.method", rule="method"),
    Equivalent("lora_r", "model.lora.rank", rule="lora"),
    Equivalent("lora_alpha", "model.lora.alpha", rule="lora"),
    Equivalent("lora_dropout", "model.lora.dropout", rule="lora"),
    Equivalent("lora_target_modules", "model.lora.target_modules", rule="lora_target"),
    Equivalent("lora_target_linear", "model.lora.target_modules", rule="lora_target_linear"),
    Equivalent("datasets", "data.sources", rule="axolotl_datasets"),
    Equivalent("datasets[].path", "data.sources[].path"),
    Equivalent("datasets[].split", "data.sources[].train_split", difference="`train[:1000]` is `limit: 1000`"),
    Equivalent("datasets[].name", "data.sources[].subset"),
    Equivalent("datasets[].revision", "data.sources[].revision"),
    Equivalent("datasets[].data_files", "data.sources[].path"),
    Equivalent("datasets[].type", "data.sources[].columns", difference=TYPE),
    *(Equivalent(f"datasets[].field_{name}", "data.sources[].columns") for name in ("messages", "chosen", "rejected")),
    Equivalent(
        "val_set_size", "data.validation_size", rule="validation_size",
        difference="data.test_size, held out for the final verdict, comes on top",
    ),
    Equivalent("learning_rate", "dpo.learning_rate"),
    Equivalent("num_epochs", "dpo.epochs"),
    Equivalent("max_steps", "dpo.max_steps", rule="max_steps"),
    Equivalent(
        "micro_batch_size", "dpo.batch_size", default=1, difference=trainer_names.BATCH,
        comment=trainer_names.BATCH_COMMENT.replace("{name}", "micro_batch_size"),
    ),
    Equivalent(
        "gradient_accumulation_steps", "dpo.gradient_accumulation_steps", difference=trainer_names.ACCUMULATION
    ),
    Equivalent("lr_scheduler", "dpo.lr_schedule", values=trainer_names.SCHEDULES, default="cosine"),
    Equivalent("warmup_steps", "dpo.warmup_steps", rule="warmup_steps"),
    Equivalent("warmup_ratio", "dpo.warmup_steps", rule="warmup_ratio", difference=trainer_names.WARMUP_RATIO, comment=""),
    Equivalent("optimizer", "dpo.optimizer", rule="optimizer", values=trainer_names.OPTIMIZERS,
        value_differences=trainer_names.OPTIMIZER_DIFFERENCES,
    ),
    Equivalent("weight_decay", "dpo.weight_decay"),
    Equivalent("adam_beta1", "dpo.adam_beta1"),
    Equivalent("adam_beta2", "dpo.adam_beta2"),
    Equivalent("max_grad_norm", "dpo.max_grad_norm"),
    Equivalent("bf16", "model.precision", rule="bf16", difference=trainer_names.PRECISION, comment=""),
    Equivalent("bfloat16", "model.precision", rule="bf16", difference=trainer_names.PRECISION, comment=""),
    Equivalent("fp16", "model.precision", rule="fp16"),
    Equivalent("float16", "model.precision", rule="fp16"),
    Equivalent(
        "gradient_checkpointing", "dpo.gradient_checkpointing",
        values={True: True, False: False, "offload": True, "offload_disk": True},
        value_differences=dict.fromkeys(("offload", "offload_disk"), "Activations are recomputed, not offloaded"),
    ),
    Equivalent("eval_steps", "dpo.eval_steps", rule="eval_steps"),
    Equivalent("eval_strategy", "dpo.eval_steps", rule="eval_strategy"),
    Equivalent("evaluation_strategy", "dpo.eval_steps", rule="eval_strategy"),
    Equivalent(
        "evals_per_epoch", "dpo.eval_steps", rule="evals_per_epoch", difference="Steps, or a share of the training", comment=""
    ),
    Equivalent("logging_steps", "dpo.logging_steps", rule="logging_steps"),
    Equivalent("seed", "seed"),
    Equivalent("fsdp", "dpo.sharding", rule="fsdp", difference="The project sets up FSDP2 itself", comment=""),
    Equivalent("fsdp_config", "dpo.sharding", rule="fsdp", difference="The project sets up FSDP2 itself", comment=""),
    Equivalent("deepspeed", "dpo.sharding", rule="deepspeed", difference="The project sets up DeepSpeed itself", comment=""),
    Equivalent("sequence_len", "dpo.max_length", rule="max_length", default=512, difference=LONG_ROWS),
    Equivalent("max_prompt_len", "dpo.max_prompt_length", rule="max_prompt_length"),
    Equivalent("rl_beta", "dpo.beta"),
    Equivalent("dpo_beta", "dpo.beta"),
    Equivalent("trl", "dpo.beta", rule="axolotl_trl"),
    Equivalent("dpo_loss_type", "dpo.loss_type", rule="loss_type"),
    Equivalent("dpo_loss_weights", "dpo.loss_weights", rule="loss_weights"),
    Equivalent(
        "rpo_alpha", "dpo.loss_weights", rule="sft_weight",
        difference="An SFT term is one of the losses: `loss_type: [sigmoid, sft]` and `loss_weights: [1, alpha]`",
    ),
    Equivalent(
        "dpo_label_smoothing", "dpo.label_smoothing", rule="label_smoothing",
        difference="It is refused with losses that ignore it in TRL 1.16, such as sigmoid",
    ),
    Equivalent("dpo_use_weighting", "dpo.use_weighting"),
    Equivalent("early_stopping_patience", "dpo.early_stopping_patience"),
    Equivalent("mlflow_experiment_name", "tracking.experiment"),
)  # fmt: skip

NOT_NEEDED = join_groups(
    trainer_names.NOT_NEEDED,
    {
        "the class of model and tokenizer is found from the model": "model_type type_of_model tokenizer_type tokenizer_use_fast "
        "tokenizer_legacy tokenizer_save_jinja_files processor_type processor_kwargs is_*_derived_model base_model_config "
        "cls_model_config model_config_type",
        "the model is loaded by the project": "device device_map max_memory gpu_memory_limit low_cpu_mem_usage "
        "experimental_skip_move_to_device lora_on_cpu hf_use_auth_token",
        "metrics go to MLflow, not to other trackers": "use_mlflow mlflow_* hf_mlflow_log_artifacts use_wandb wandb_* use_comet "
        "comet_* use_trackio use_tensorboard use_swanlab swanlab_* use_otel_metrics otel_* profiler_steps "
        "profiler_steps_start include_tkps",
        "the data is read, checked and tokenised by the project": "dataset_prepared_path dataset_processes "
        "dataset_keep_in_memory skip_prepare_dataset num_dataset_shards_to_save push_dataset_to_hub is_preprocess "
        "preprocess_iterable total_num_tokens total_supervised_tokens shuffle_merged_datasets "
        "shuffle_before_merging_datasets axolotl_config_path strict capabilities env_capabilities",
        "duplicates are dropped (data.checks.duplicate)": "dataset_exact_deduplication",
        "batches are flat: each prompt is processed once, without padding (model.layout)": "sample_packing* eval_sample_packing "
        "pad_to_sequence_len batch_flattening dpo_padding_free multipack_real_batches pretrain_multipack_* "
        "streaming_multipack_buffer_size",
        "the reference is scored once, before DPO": "precompute_ref_log_probs dpo_use_logits_to_keep",
        "the model is saved as an artifact at the end; an interrupted training resumes from its training checkpoints "
        "(checkpoints.interval_s)": "saves_per_epoch save_first_step auto_resume_from_checkpoints dynamic_checkpoint",
        "the pipeline always evaluates; test prompts are answered by every model (evaluation.generations)": "eval_batch_size "
        "eval_sequence_len generate_samples num_generation_samples generation_* dpo_generate_during_eval do_causal_lm_eval "
        "eval_causal_lm_metrics do_bench_eval bench_dataset bench_split eval_table_size eval_max_new_tokens",
        "a training that diverges is stopped (dpo.stop_on_divergence)": "loss_watchdog_threshold loss_watchdog_patience",
        "processes are started by the project (dpo.processes)": "ddp world_size use_ray ray_* resources_per_worker fsdp_version "
        "fsdp_final_state_dict_type",
        "memory is freed as needed": "gc_steps gc_collect_steps",
        "these are settings for serving or other stages": "gradio_* vllm ebft qat quantization merge_lora merge_method "
        "train_on_inputs orpo_alpha simpo_gamma cpo_alpha kto_* reward_model process_reward_model center_rewards_coefficient "
        "num_labels pretraining_* use_pose pose_*",
    },
)

NOT_SUPPORTED = join_groups(
    trainer_names.NOT_SUPPORTED,
    {
        "evaluation sets go under evaluation.sets, and validation rows are taken from the training data": "test_datasets",
        "the size of a step is batch_size x gradient_accumulation_steps": "batch_size",
        "text beyond the maximum length is cut and counted": "excess_length_strategy min_sample_len",
        "DPO starts at an SFT checkpoint of this project: merge the adapter into the base first": "lora_model_dir",
        "the base of an adapter is held in 16 or 4 bits (model.method lora or qlora)": "load_in_8bit gptq bnb_config_kwargs "
        "loftq_config peft fp8 fp8_* model_quantization_config* quantize_moe_experts use_onebitllms qlora_sharded_model_loading",
        "plain LoRA is the only adapter": "peft_* lora_rank_pattern lora_alpha_pattern lora_fan_in_fan_out "
        "lora_target_parameters loraplus_* relora* jagged_* lisa_*",
        "only the adapter is trained": "lora_modules_to_save unfrozen_parameters freeze_mm_modules",
        "AdamW is the only optimizer, with one learning rate": "adam_epsilon2 adam_beta3 torchdistx_path dion_* qgalore_* "
        "embedding_lr embedding_lr_scale lr_groups",
        "schedules have no further arguments": "lr_quadratic_warmup cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor",
        "kernels of other projects are not used; the LM head is computed on response tokens only": "lora_mlp_kernel "
        "lora_qkv_kernel lora_o_kernel lora_embedding_kernel chunked_cross_entropy* dpo_use_liger_kernel use_kernels "
        "use_scattermoe use_sonicmoe liger_* flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp flash_optimum "
        "fused_attn_kernel tiled_mlp* experts_implementation",
        "this attention is not offered (model.attention)": "xformers_attention sage_attention s2_attention flash_attn_d512 "
        "flex_attn_compile_kwargs gemma4_hybrid_attn_impl large_head_attention sdpa_varlen scaling_softmax*",
        "plugins are not offered": "plugins trainer_cls",
        "the tokenizer is used as it is, and the token that ends a response is found from the chat template": "special_tokens "
        "tokens added_tokens_overrides eot_tokens bos_token eos_token pad_token unk_token additional_special_tokens "
        "tokenizer_config tokenizer_use_mistral_common fix_untrained_tokens",
        "the embeddings keep their size": "resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings",
        "the model is used as it is": "overrides_of_model_config overrides_of_model_kwargs reinit_weights rope_scaling "
        "embeddings_skip_upcast fp32_norms fp32_norm_classes float32 llama4_linearized_experts",
        "the chat template decides how system messages and thinking are written": "chat_template_kwargs default_system_message",
        "all activations are recomputed (dpo.gradient_checkpointing)": "selective_checkpointing layer_offloading",
        "context and tensor parallelism are not offered": "dp_shard_size dp_replicate_size sequence_parallel_degree "
        "context_parallel_size heads_k_stride ring_attn_func tensor_parallel_size deepcompile",
        "the data is shuffled, and read as a whole": "curriculum_sampling dataset_shard_num dataset_shard_idx streaming "
        "max_packed_sequence_len",
        "this loss is not offered": "use_eaft eaft_alpha eaft_k dpo_norm_loss noisy_embedding_alpha",
        "models for text only": "image_size image_resize_algorithm role_boundaries",
        "inductor's options are not offered": "torch_compile_options",
        "input columns of a dataset beyond prompt, chosen and rejected are not read": "datasets[].*",
    },
)

SAME = {
    **trainer_names.SAME,
    "excess_length_strategy": ("truncate",),
    "dp_shard_size": (1,),
    "dp_replicate_size": (1,),
    "context_parallel_size": (1,),
    "sequence_parallel_degree": (1,),
    "tensor_parallel_size": (1,),
}

AXOLOTL = Tool(
    key="axolotl",
    name="axolotl",
    model_key="base_model",
    data_keys=("datasets",),
    equivalents=EQUIVALENTS,
    not_needed=NOT_NEEDED,
    not_supported=NOT_SUPPORTED,
    same=SAME,
)
