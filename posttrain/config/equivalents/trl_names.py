"""TRL's settings and ours. Read from TRL 1.16: DPOConfig, ModelConfig, ScriptArguments, DatasetMixtureConfig.

Names that TRL has dropped, but configs in use still have, are here too (`max_prompt_length`, `rpo_alpha`, `dataset_mixer`).
"""

from __future__ import annotations

from dataclasses import replace

from posttrain.config.equivalents import trainer_names
from posttrain.config.equivalents.entry import Equivalent, Tool, join_groups

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
TEST_SPLIT = "The test split is held out for the final verdict; validation rows are taken from the training split"
DATASET = "A list: each source has its own splits, subset, columns and weight"

_OWN_DEFAULTS = {"learning_rate": 1e-6}


def _training() -> tuple[Equivalent, ...]:
    return tuple(
        replace(entry, default=_OWN_DEFAULTS.get(entry.name, entry.default)) for entry in trainer_names.TRAINING
    )


EQUIVALENTS = (
    Equivalent("model_name_or_path", "model.base"),
    Equivalent("model_revision", "model.revision"),
    Equivalent("trust_remote_code", "model.trust_remote_code", rule="trust_remote_code"),
    Equivalent("attn_implementation", "model.attention", rule="attention"),
    Equivalent("chat_template_path", "model.chat_template", rule="chat_template_path"),
    Equivalent("use_peft", "model.method", rule="method"),
    Equivalent("load_in_4bit", "model.method", rule="method"),
    Equivalent("lora_r", "model.lora.rank", rule="lora"),
    Equivalent("lora_alpha", "model.lora.alpha", rule="lora"),
    Equivalent("lora_dropout", "model.lora.dropout", rule="lora", default=0.05),
    Equivalent(
        "lora_target_modules", "model.lora.target_modules", rule="lora_target",
        difference="Without it, TRL lets PEFT choose (usually q_proj and v_proj); all linear layers get an adapter here",
        comment="",
    ),
    Equivalent("dataset_name", "data.sources[].path", rule="trl_dataset", difference=DATASET, comment=""),
    Equivalent("dataset_config", "data.sources[].subset", rule="trl_dataset"),
    Equivalent("dataset_train_split", "data.sources[].train_split", rule="trl_dataset"),
    Equivalent("dataset_test_split", "data.sources[].test_split", rule="trl_dataset", difference=TEST_SPLIT),
    Equivalent("datasets", "data.sources", rule="trl_datasets"),
    Equivalent("dataset_mixer", "data.sources", rule="dataset_mixer"),
    Equivalent("dataset_splits", "data.sources[].train_split", rule="dataset_mixer", difference=TEST_SPLIT),
    Equivalent("test_split_size", "data.test_size"),
    *_training(),
    Equivalent("gradient_checkpointing", "dpo.gradient_checkpointing"),
    Equivalent(
        "max_length", "dpo.max_length", rule="max_length", default=1024, null="no limit",
        difference="The rest of a response is cut off; a prompt is cut to max_prompt_length from its beginning",
    ),
    Equivalent("max_prompt_length", "dpo.max_prompt_length", rule="max_prompt_length"),
    Equivalent("beta", "dpo.beta"),
    Equivalent("loss_type", "dpo.loss_type", rule="loss_type", values={**{name: name for name in LOSSES}, "aot_pair": "aot"}),
    Equivalent("loss_weights", "dpo.loss_weights", rule="loss_weights"),
    Equivalent(
        "rpo_alpha", "dpo.loss_weights", rule="sft_weight",
        difference="An SFT term is one of the losses: `loss_type: [sigmoid, sft]` and `loss_weights: [1, alpha]`",
    ),
    Equivalent(
        "label_smoothing", "dpo.label_smoothing", rule="label_smoothing",
        difference="It is refused with losses that ignore it in TRL 1.16, such as sigmoid",
    ),
    Equivalent("f_divergence_type", "dpo.f_divergence_type"),
    Equivalent("f_alpha_divergence_coef", "dpo.f_alpha_divergence_coef"),
    Equivalent("discopop_tau", "dpo.discopop_tau"),
    Equivalent("use_weighting", "dpo.use_weighting"),
)  # fmt: skip

NOT_NEEDED = join_groups(trainer_names.NOT_NEEDED, {
    "the reference is scored once, before DPO": "precompute_ref_log_probs precompute_ref_batch_size reference_free "
    "force_use_ref_model ref_model_init_kwargs",
    "batches are flat: each prompt is processed once, without padding (model.layout)": "padding_free use_logits_to_keep pad_token "
    "padding_value label_pad_token_id",
    "a 4-bit base is always NF4, quantised twice": "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage "
    "bnb_4bit_compute_dtype",
    "the type of task is always CAUSAL_LM": "lora_task_type",
    "buffers are handled by the project": "ignore_bias_buffers",
    "test pairs are answered by every model (evaluation.generations)": "generate_during_eval",
    "the layout and the columns of the data are recognised (data.sources[].format, columns)": "columns text_column "
    "auto_insert_empty_system_msg",
})  # fmt: skip

NOT_SUPPORTED = join_groups(
    trainer_names.NOT_SUPPORTED,
    {
        "the reference stays the SFT checkpoint": "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
        "length-desensitised DPO is not offered": "ld_alpha",
        "long prompts lose their beginning, long responses their end": "truncation_mode",
        "dropout of the base model is off in DPO": "disable_dropout",
        "the router's auxiliary loss is not trained": "router_aux_loss_coef",
        "name the settings one by one: model.revision, model.attention, model.precision": "model_init_kwargs",
        "plain LoRA is the only adapter": "use_rslora use_dora lora_target_parameters",
        "only the adapter is trained": "lora_modules_to_save",
        "the base of an adapter is held in 16 or 4 bits (model.method lora or qlora)": "load_in_8bit",
        "datasets are read as a whole": "dataset_streaming streaming",
        "environment variables are set outside of the config": "env",
    },
)

SAME = {
    **trainer_names.SAME,
    "truncation_mode": ("keep_start",),
    "disable_dropout": (True,),
    # TRL only uses these two with sync_ref_model.
    "ref_model_mixup_alpha": (0.6,),
    "ref_model_sync_steps": (512,),
}

OTHER_TRAINERS = {
    "SFT": "packing packing_strategy completion_only_loss assistant_only_loss dataset_text_field eval_packing",
    "GRPO": "num_generations reward_funcs max_completion_length reward_weights use_vllm num_iterations",
    "KTO": "desirable_weight undesirable_weight",
    "reward modelling": "center_rewards_coefficient",
}
"""Settings that only another trainer of TRL has."""

TRL = Tool(
    key="trl",
    name="TRL",
    model_key="model_name_or_path",
    data_keys=("dataset_name", "datasets", "dataset_mixer"),
    equivalents=EQUIVALENTS,
    not_needed=NOT_NEEDED,
    not_supported=NOT_SUPPORTED,
    same=SAME,
)
