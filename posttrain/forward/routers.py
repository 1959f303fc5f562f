"""The load-balancing loss of mixture-of-experts models."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")


def stop_router_outputs(model: Any) -> None:
    """Make the model return router logits only where a call asks for them, and give the router's sizes the names TRL reads.

    With `output_router_logits` in the config, every forward pass would compute a loss that nothing uses.
    """
    text = model.config.get_text_config()
    if not hasattr(text, "output_router_logits"):
        return
    text.output_router_logits = False
    for name, others in (("num_experts", EXPERTS), ("num_experts_per_tok", CHOSEN)):
        value = next((getattr(text, other) for other in others if getattr(text, other, None) is not None), None)
        if getattr(text, name, None) is None and value is not None:
            setattr(text, name, value)


def balance_loss(model: Any, router_logits: tuple[Tensor, ...]) -> Tensor:
    """Return the load-balancing loss of a flat row, by the function of the model's own family.

    Source: Fedus et al. 2021, equations 4 to 6; 1 times the number of chosen experts if the load is even.
    """
    text = model.config.get_text_config()
    family = sys.modules[type(model).__module__]
    loss: Tensor = family.load_balancing_loss_func(router_logits, text.num_experts, text.num_experts_per_tok, None)
    return loss


def has_balance_loss(model: Any) -> bool:
    """Return whether the model's family computes a load-balancing loss in training."""
    family = sys.modules[type(model).__module__]
    return hasattr(model.config.get_text_config(), "output_router_logits") and hasattr(
        family, "load_balancing_loss_func"
    )
