"""Families of models: each turns any batch into loss, logits and targets, so that no method knows the architecture."""

#: backbone.family -> file:class. Plain text: importing a family imports torch.
FAMILIES = {
    "classifier": "classifier:Classifier",
    "causal": "causal:Causal",
    "seq2seq": "seq2seq:Seq2Seq",
    "image_text": "image_text:ImageText",
}
