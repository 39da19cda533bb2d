"""BERT, RoBERTa and ALBERT."""

from .case import Case, padded, tokens

SETTINGS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 41,
    "max_position_embeddings": 12,
}
PADDED = padded(41, labels=False)
MASK = PADDED["attention_mask"]
TYPES = tokens(5, *MASK.shape) % 2
OF_ROBERTA = {**PADDED, "position_ids": PADDED["position_ids"] + 2}  # its position_ids have the offset
# RoBERTa's embedding of positions gives padding, at index 1, no gradient; padding is not compared.


def settings(model_type, name, **others):
    return {"model_type": model_type, "architectures": [name], **SETTINGS, **others}


def options(inputs):
    return {"attention_mask": inputs["attention_mask"], "token_types": inputs.get("token_type_ids")}


def encoded(model, inputs):
    """Hidden states and the pooled vector."""
    found = model(inputs["input_ids"], **options(inputs))
    return {"last_hidden_state": found.hidden, "pooler_output": found.pooled}


def logits(model, inputs):
    """The logits of a head."""
    return {"logits": model(inputs["input_ids"], **options(inputs))}


# The first token of a row is its summary, so padding is on the right where it is read.
RIGHT = padded(41, ("1111111", "1111100", "1110000"), labels=False)
MODEL = {"call": encoded, "valid": {"last_hidden_state": RIGHT["attention_mask"]}}
MASKED = {"call": logits, "valid": {"logits": MASK}}

CASES = {
    "bert": Case(settings("bert", "BertModel"), {**RIGHT, "token_type_ids": TYPES}, **MODEL),
    "bert, masked": Case(settings("bert", "BertForMaskedLM", hidden_act="relu"), PADDED, **MASKED),
    "bert, classes": Case(settings("bert", "BertForSequenceClassification", num_labels=3), RIGHT, call=logits),
    "roberta": Case(settings("roberta", "RobertaModel"), {**RIGHT, "position_ids": RIGHT["position_ids"] + 2}, **MODEL),
    "roberta, masked": Case(settings("roberta", "RobertaForMaskedLM"), OF_ROBERTA, **MASKED),
    "roberta, classes": Case(
        settings("roberta", "RobertaForSequenceClassification", num_labels=3, type_vocab_size=1),
        {name: RIGHT[name] for name in ("input_ids", "attention_mask")},
        call=logits,
    ),
    "albert": Case(settings("albert", "AlbertModel", embedding_size=8), RIGHT, **MODEL),
    "albert, two groups, masked": Case(
        settings("albert", "AlbertForMaskedLM", embedding_size=8, num_hidden_layers=4, num_hidden_groups=2),
        PADDED,
        **MASKED,
    ),
}
