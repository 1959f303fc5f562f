"""Chats with the tokens of real models, for templates of one's own and those that ship with TRL."""

from docs.chat_templates import SPECIAL, byte_tokenizer, trl_template
from posttrain.chat.template import Chat, TemplateSettings, prepare_chat


def chat_of(template, *special, eos="</s>", bos="<s>", plain=(), more_stop_ids=(), **kwargs) -> Chat:
    """Return a chat with a template and special tokens."""
    tokenizer = byte_tokenizer(special, template, bos, eos, plain)
    return prepare_chat(tokenizer, TemplateSettings(kwargs=kwargs), more_stop_ids)


def trl_chat(name, eos="</s>", **kwargs) -> Chat:
    """Return a chat with a template of TRL and the special tokens that it writes."""
    template = trl_template(name)
    return chat_of(template, *sorted(set(SPECIAL.findall(template))), eos=eos, **kwargs)
