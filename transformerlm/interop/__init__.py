"""Other projects' formats, in and out: folders of Hugging Face's transformers, GGUF, tokenizer files."""
