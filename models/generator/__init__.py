"""A latent diffusion model as a differentiable map from controls to images: samplers, chain, inversion, attention,
prompts, editable region. Loading of pipelines is in models/generator/pipeline/."""
