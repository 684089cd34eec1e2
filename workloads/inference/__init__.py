"""Serving on one replica: a model's answers to OpenAI-style requests, or an app of the user's own.

    replica.py    the class Ray Serve runs; picks one of the servers below from the launch order
    answers.py    the servers: text (chat, completions), vectors (embeddings), labels (classify)
    openai.py     requests and answers in OpenAI's form; errors
    engine.py     continuous batching on one thread; batch packed sampling text adapters are its parts
    encoder.py    batched forward passes for embeddings and classification
    vllm_engine.py  the same port as engine.py on vLLM
    app.py        a class of the user's own

Knows llmsched.runtime and nothing else of llmsched.
"""
