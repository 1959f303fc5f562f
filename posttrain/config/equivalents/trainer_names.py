"""Settings of transformers' TrainingArguments, which TRL and LLaMA-Factory share. Read from transformers 5.23."""

from __future__ import annotations

from posttrain.config.equivalents.entry import Equivalent

BATCH = "It counts the rows of all processes together, {tool}'s is per process"
BATCH_COMMENT = (
    "batch_size x gradient_accumulation_steps is the number of pairs in one optimisation step of all processes together. "
    "{tool}'s {name} is per process. If you trained with N processes (GPUs), multiply gradient_accumulation_steps by N."
)
ACCUMULATION = (
    "With batch_size it makes up the rows of all processes together: multiply {tool}'s by the number of processes"
)

OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "paged_adamw", "paged_adamw_32bit"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), "adamw_8bit"),
}
OPTIMIZER_DIFFERENCES = {
    **dict.fromkeys(
        ("paged_adamw", "paged_adamw_32bit", "paged_adamw_8bit"),
        "The optimizer state is not paged: it stays in GPU memory",
    ),
    "adamw_torch_8bit": "The 8-bit optimizer is bitsandbytes', not torchao's",
}
SCHEDULES = {name: name for name in ("linear", "cosine", "constant", "constant_with_warmup")}
WARMUP_RATIO = "It counts optimisation steps; multiply a ratio by the number of steps, which `posttrain check` prints"
PRECISION = "Frozen weights are stored in this precision, trained weights in fp32"
ATTENTION = {"eager": "eager", "sdpa": "sdpa", "flex_attention": "flex"}

TRAINING = (
    Equivalent("learning_rate", "dpo.learning_rate"),
    Equivalent("num_train_epochs", "dpo.epochs", default=3.0),
    Equivalent("max_steps", "dpo.max_steps", rule="max_steps"),
    Equivalent(
        "per_device_train_batch_size", "dpo.batch_size", difference=BATCH,
        comment=BATCH_COMMENT.replace("{name}", "per_device_train_batch_size"), default=8,
    ),
    Equivalent("gradient_accumulation_steps", "dpo.gradient_accumulation_steps", difference=ACCUMULATION),
    Equivalent("lr_scheduler_type", "dpo.lr_schedule", values=SCHEDULES),
    Equivalent("warmup_steps", "dpo.warmup_steps", rule="warmup_steps"),
    Equivalent("warmup_ratio", "dpo.warmup_steps", rule="warmup_ratio", difference=WARMUP_RATIO, comment=""),
    Equivalent("optim", "dpo.optimizer", rule="optimizer", values=OPTIMIZERS, value_differences=OPTIMIZER_DIFFERENCES),
    Equivalent("weight_decay", "dpo.weight_decay"),
    Equivalent("adam_beta1", "dpo.adam_beta1"),
    Equivalent("adam_beta2", "dpo.adam_beta2"),
    Equivalent("max_grad_norm", "dpo.max_grad_norm"),
    Equivalent("bf16", "model.precision", rule="bf16", difference=PRECISION, comment=""),
    Equivalent("fp16", "model.precision", rule="fp16"),
    Equivalent("eval_steps", "dpo.eval_steps", rule="eval_steps"),
    Equivalent("eval_strategy", "dpo.eval_steps", rule="eval_strategy"),
    Equivalent("evaluation_strategy", "dpo.eval_steps", rule="eval_strategy"),
    Equivalent("logging_steps", "dpo.logging_steps", rule="logging_steps"),
    Equivalent("seed", "seed"),
    Equivalent("fsdp", "dpo.sharding", rule="fsdp", difference="The project sets up FSDP2 itself", comment=""),
    Equivalent("deepspeed", "dpo.sharding", rule="deepspeed", difference="The project sets up DeepSpeed itself", comment=""),
)  # fmt: skip

NOT_NEEDED = {
    "artifacts are versioned by ZenML": "output_dir overwrite_output_dir",
    "the model is saved as an artifact at the end; an interrupted training resumes from its training checkpoints "
    "(checkpoints.interval_s)": "save_strategy save_steps save_total_limit save_only_model save_on_each_node save_safetensors "
    "enable_jit_checkpoint resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint",
    "`posttrain export VERSION hf://organisation/name` publishes a model": "push_to_hub hub_model_id hub_strategy "
    "hub_private_repo hub_always_push hub_revision hub_model_revision push_to_hub_model_id push_to_hub_organization",
    "access tokens are read from the environment (HF_TOKEN), never from a config": "hub_token push_to_hub_token",
    "metrics go to the MLflow tracker of the active ZenML stack": "report_to run_name project trackio_* logging_dir "
    "logging_strategy logging_first_step log_level log_level_replica log_on_each_node logging_nan_inf_filter disable_tqdm "
    "skip_memory_metrics include_num_input_tokens_seen include_tokens_per_second",
    "the pipeline always trains, validates and tests": "do_train do_eval do_predict eval_on_start eval_delay "
    "prediction_loss_only include_for_metrics include_inputs_for_metrics batch_eval_metrics eval_do_concat_batches "
    "eval_use_gather_object eval_accumulation_steps",
    "validation uses dpo.batch_size, the test evaluation.tokens_per_batch": "per_device_eval_batch_size bf16_full_eval "
    "fp16_full_eval",
    "a step that does not fit into memory is tried again in smaller micro-batches": "auto_find_batch_size",
    "the project loads and batches the data itself": "dataloader_* remove_unused_columns label_names "
    "train_sampling_strategy length_column_name group_by_length dataset_num_proc preprocessing_num_workers pad_to_multiple_of",
    "processes and devices are found; dpo.processes sets their number": "use_cpu no_cuda local_rank ddp_* "
    "accelerator_config fsdp_config log_on_each_node average_tokens_across_devices",
    "the project decides how gradient checkpointing is done": "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
    "trained weights are stored in fp32, frozen weights in model.precision": "dtype torch_dtype",
    "the key-value cache is off in training": "use_cache",
}

NOT_SUPPORTED = {
    "AdamW's other arguments are fixed (epsilon 1e-8)": "adam_epsilon optim_args optim_target_modules",
    "schedules have no further arguments": "lr_scheduler_kwargs",
    "the model of the last step is kept, or with early_stopping_patience the best one by dpo.early_stopping_metric":
    "load_best_model_at_end metric_for_best_model greater_is_better",
    "matrix products outside of model.precision use PyTorch's default": "tf32",
    "the model is not compiled": "torch_compile torch_compile_backend torch_compile_mode",
    "liger kernels are not used; the LM head is computed on response tokens only": "use_liger_kernel liger_kernel_config",
    "noise on embeddings (NEFTune) is not offered": "neftune_noise_alpha",
    "the order of the data follows seed": "data_seed full_determinism",
    "all activations are recomputed (dpo.gradient_checkpointing)": "activation_checkpointing activation_offloading",
    "context and tensor parallelism are not offered": "parallelism_config",
    "label_smoothing_factor belongs to cross-entropy and has no effect in DPO": "label_smoothing_factor",
    "PyTorch's cache is not emptied between steps": "torch_empty_cache_steps",
    "debugging hooks of transformers are not offered": "debug",
}  # fmt: skip

SAME = {
    "adam_epsilon": (1e-8,),
    "label_smoothing_factor": (0.0,),
}
