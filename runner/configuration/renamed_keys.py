"""Configuration keys and options that were renamed: an old name ends in one line that gives the new one."""

from __future__ import annotations

from collections.abc import Mapping

KEYS = {
    "claim": "lease",
    "claim.lease": "lease.duration",
    "claim.wait": "lease.wait_for_others",
    "select.center": "select.center_crop",
    "words": "phrases",
    "words.phrases": "phrases.places",
    "words.things": "phrases.co_occurring",
    "controls": "parametrization",
    "safety": "safety_checker",
    "samples": "imagenet_samples",
    "domain.noise": "domain.crop_noise_std",
    "domain.steps": "domain.optimizer_steps",
    "domain.images": "domain.pixel_space",
    "domain.images.side": "domain.pixel_space.resolution",
    "domain.images.erode": "domain.pixel_space.erode_kernel",
    "domain.images.dilate": "domain.pixel_space.dilate_kernel",
    "domain.images.blur": "domain.pixel_space.blur_sigma",
    "domain.images.rate": "domain.pixel_space.lr_scale",
    "augment.noise": "augment.noise_std",
    "task.augmentations.crops.noise": "task.augmentations.crops.noise_std",
    "task.augmentations.much_noise.noise": "task.augmentations.much_noise.noise_std",
    "augment.min_share": "augment.min_crop_fraction",
    "task.augmentations.crops.min_share": "task.augmentations.crops.min_crop_fraction",
    "task.augmentations.much_noise.min_share": "task.augmentations.much_noise.min_crop_fraction",
    "augment.redraw": "augment.new_crops_per_prediction",
    "task.augmentations.crops.redraw": "task.augmentations.crops.new_crops_per_prediction",
    "task.augmentations.much_noise.redraw": "task.augmentations.much_noise.new_crops_per_prediction",
    "optimizer.lr.guidance": "optimizer.lr.classifier_guidance",
    "baseline.pixels.begun": "baseline.pixels.initialization",
    "baseline.yosinski.begun": "baseline.yosinski.initialization",
    "baseline.mahendran_vedaldi.begun": "baseline.mahendran_vedaldi.initialization",
    "baseline.feature_attack.begun": "baseline.feature_attack.initialization",
    "baseline.pixels.most": "baseline.pixels.max_images",
    "baseline.yosinski.most": "baseline.yosinski.max_images",
    "baseline.mahendran_vedaldi.most": "baseline.mahendran_vedaldi.max_images",
    "baseline.feature_attack.most": "baseline.feature_attack.max_images",
    "baseline.generator_prior.most": "baseline.generator_prior.max_images",
    "baseline.yosinski.rate": "baseline.yosinski.lr",
    "baseline.mahendran_vedaldi.rate": "baseline.mahendran_vedaldi.lr",
    "baseline.feature_attack.rate": "baseline.feature_attack.lr",
    "baseline.generator_prior.rate": "baseline.generator_prior.lr",
    "baseline.yosinski.between": "baseline.yosinski.regularizers",
    "baseline.mahendran_vedaldi.between": "baseline.mahendran_vedaldi.regularizers",
    "baseline.feature_attack.between": "baseline.feature_attack.regularizers",
    "baseline.feature_attack.between.ball": "baseline.feature_attack.regularizers.l2_ball",
    "baseline.mahendran_vedaldi.between.range": "baseline.mahendran_vedaldi.regularizers.bounded_range",
    "baseline.yosinski.between.decay": "baseline.yosinski.regularizers.l2_decay",
    "baseline.yosinski.between.blur": "baseline.yosinski.regularizers.gaussian_blur",
    "baseline.yosinski.between.norm": "baseline.yosinski.regularizers.clip_small_norm",
    "baseline.yosinski.between.contribution": "baseline.yosinski.regularizers.clip_small_contribution",
    "baseline.yosinski.without": "baseline.yosinski.excluded_terms",
    "baseline.mahendran_vedaldi.without": "baseline.mahendran_vedaldi.excluded_terms",
    "baseline.feature_attack.without": "baseline.feature_attack.excluded_terms",
    "baseline.yosinski.weights": "baseline.yosinski.penalty_weights",
    "baseline.mahendran_vedaldi.weights": "baseline.mahendran_vedaldi.penalty_weights",
    "baseline.feature_attack.weights": "baseline.feature_attack.penalty_weights",
    "captioner.phrases": "captioner.context_phrases",
    "captioner.top": "captioner.top_k",
    "captioner.demands": "captioner.caption_prompts",
    "captioner.inventory": "captioner.objects_prompt",
    "captioner.examples.picture": "captioner.examples.image",
    "captioner.examples.answer": "captioner.examples.caption",
    "classifier.inside": "classifier.state_dict_entries",
    "rival.inside": "rival.state_dict_entries",
    "classifier.keys": "classifier.key_mapping",
    "rival.keys": "rival.key_mapping",
    "classifier.files": "classifier.extra_files",
    "rival.files": "rival.extra_files",
    "classifier.names": "classifier.class_names",
    "rival.names": "rival.class_names",
    "classifier.scale": "classifier.logit_scale",
    "rival.scale": "rival.logit_scale",
    "classifier.channels": "classifier.stem_channels",
    "rival.channels": "rival.stem_channels",
    "controls.starts": "parametrization.num_initializations",
    "controls.fresh": "parametrization.images_per_step",
    "controls.validation": "parametrization.validation_images",
    "controls.report": "parametrization.images_per_result",
    "controls.tokens.load": "parametrization.tokens.load_path",
    "controls.tokens.spread": "parametrization.tokens.initial_std",
    "controls.tokens.cooling": "parametrization.tokens.temperature_decay",
    "data.image": "data.image_column",
    "training.image": "training.image_column",
    "data.config": "data.config_name",
    "training.config": "training.config_name",
    "generator.needs": "generator.download_hint",
    "generator.guidance": "generator.guidance_scale",
    "generator.guided": "generator.guidance_interval",
    "generator.backward": "generator.backprop_steps",
    "generator.last": "generator.last_x0_predictions",
    "generator.recompute": "generator.gradient_checkpointing",
    "generator.clamp_gradient": "generator.straight_through_clamp",
    "generator.maps": "generator.attention_maps",
    "generator.maps.side": "generator.attention_maps.resolution",
    "generator.maps.first": "generator.attention_maps.start",
    "generator.maps.last": "generator.attention_maps.end",
    "generator.maps.stretch": "generator.attention_maps.min_max_normalize",
    "generator.softening": "generator.mask_postprocess",
    "generator.softening.latents.erode": "generator.mask_postprocess.latents.erode_kernel",
    "generator.softening.pixels.erode": "generator.mask_postprocess.pixels.erode_kernel",
    "generator.softening.erode": "generator.mask_postprocess.erode_kernel",
    "generator.softening.latents.dilate": "generator.mask_postprocess.latents.dilate_kernel",
    "generator.softening.pixels.dilate": "generator.mask_postprocess.pixels.dilate_kernel",
    "generator.softening.dilate": "generator.mask_postprocess.dilate_kernel",
    "generator.softening.latents.blur": "generator.mask_postprocess.latents.blur_sigma",
    "generator.softening.pixels.blur": "generator.mask_postprocess.pixels.blur_sigma",
    "generator.softening.blur": "generator.mask_postprocess.blur_sigma",
    "generator.schedules": "generator.prompt_to_prompt",
    "task.schedules": "task.prompt_to_prompt",
    "generator.schedules.inject": "generator.prompt_to_prompt.cross_replace_steps",
    "task.schedules.inject": "task.prompt_to_prompt.cross_replace_steps",
    "generator.schedules.blend": "generator.prompt_to_prompt.background_blend_steps",
    "task.schedules.blend": "task.prompt_to_prompt.background_blend_steps",
    "generator.blend_from": "generator.background_blend_start",
    "generator.null_text.rate": "generator.null_text.lr",
    "generator.null_text.tolerance": "generator.null_text.early_stop_epsilon",
    "generator.null_text.tolerance_growth": "generator.null_text.early_stop_epsilon_growth",
    "generator.null_text.last_update": "generator.null_text.update_before_stop",
    "generator.draws": "generator.known_classes",
    "generator.sampler.original_steps": "generator.sampler.original_inference_steps",
    "generator.std": "generator.noise_std",
    "optimizer.clip": "optimizer.gradient_clipping",
    "optimizer.clip.most": "optimizer.gradient_clipping.max_norm",
    "optimizer.stop": "optimizer.early_stopping",
    "optimizer.stop.times": "optimizer.early_stopping.patience",
    "optimizer.stop.below": "optimizer.early_stopping.thresholds",
    "safety.blur": "safety_checker.relative_blur_sigma",
    "segmenter.never": "segmenter.sure_background",
    "segmenter.likely": "segmenter.probable_foreground",
    "segmenter.certain": "segmenter.sure_foreground",
    "segmenter.background": "segmenter.background_threshold",
    "segmenter.points": "segmenter.num_points",
    "segmenter.options": "segmenter.forward_kwargs",
    "text_segmenter.options": "text_segmenter.forward_kwargs",
    "segmenter.config": "segmenter.detector_config",
    "text_segmenter.config": "text_segmenter.detector_config",
    "segmenter.weights": "segmenter.detector_weights",
    "text_segmenter.weights": "text_segmenter.detector_weights",
    "segmenter.sam": "segmenter.sam_model_type",
    "text_segmenter.sam": "text_segmenter.sam_model_type",
    "task.keep": "task.preserve",
    "task.moved": "task.min_change_std",
    "task.margin": "task.margin_saturation",
    "task.phrases": "task.context_phrases",
    "task.starts": "task.num_initializations",
    "task.gap": "task.min_confidence_gap",
    "task.seeds": "task.num_seeds",
    "task/validate": "task/retrieval",
    "task.validate": "task.retrieval",
    "task.validate.nearest": "task.retrieval.top_k",
    "task.validate.side": "task.retrieval.resolution",
    "task/labels": "task/annotations",
    "task.labels": "task.annotations",
    "task.labels.animate": "task.annotations.animate_classes",
    "task.attribute.words": "task.attribute.mask_words",
    "task.surroundings": "task.context_search",
    "task.surroundings.phrases": "task.context_search.context_phrases",
    "task.surroundings.redraw": "task.context_search.resample_noise",
    "task.surroundings.samples": "task.context_search.images_per_phrase",
    "task.attack": "task.feature_attack",
    "task.attack.step": "task.feature_attack.step_size",
    "task.start": "task.start_images",
    "task.named": "task.class_name_prompt",
    "task.feature": "task.feature_rank",
    "task.features": "task.features_per_class",
    "task.calibration": "task.calibration_runs",
    "task.reached": "task.activation_threshold",
    "task.top": "task.top_images",
    "task.samples": "task.images_per_object",
    "submit.parallel": "submit.max_parallel",
    "submit.requeues": "submit.max_requeues",
    "submit.gb": "submit.mem_gb",
    "panel.picture": "panel.image",
    "data.label": "data.label_column (data=hf or fairface)",
    "training.label": "training.label_column (training=hf_train or fairface_train)",
    "task.enough": "task.saturation_std (task=neuron_cf or npca_cf) or task.saturation_ratio (task=neuron_vis)",
    "task.words": "task.start_classes (task=disagreement) or task.max_objects (task=neuron_vis)",
    "task.images": "task.images_per_component (task=npca_cf) or task.images_per_prompt (task=diffexplainer_class)",
}
# Keys that still exist in other tasks: reported only where the key is unknown.
KEYS_OF_ONE_TASK = {"task.prompt": "task.class_name_prompt (task=uvce)"}
OPTIONS = {
    "task.baseline=guidance": "task.baseline=classifier_guidance",
    "data=drawn": "data=none",
    "classifier=planted_tied": "classifier=planted_background_shortcut",
    "classifier=planted_tied2": "classifier=planted_background_shortcut2",
    "data.cues=chance": "data.cues=independent",
    "data.cues=shown": "data.cues=present",
    "data.cues=hidden": "data.cues=absent",
    "experiment=planted/portrait": "experiment=planted/class_explanation",
    "experiment=planted/object_kept": "experiment=planted/object_preserved",
}


def new_name(key: str, renamed: Mapping[str, str] = KEYS) -> str | None:
    """The new name of a configuration key, or of a key below a renamed one; None for a key that was never renamed."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (new := renamed.get(".".join(parts[:end]))) is not None:
            return ".".join([new, *parts[end:]])
    return None


def renamed_key(key: str, renamed: Mapping[str, str] = KEYS) -> str | None:
    """The error message about an old key, None for any other key."""
    new = new_name(key, renamed)
    return None if new is None else f"{key}: this key was renamed to {new}"


def renamed_unknown_key(key: str, renamed: Mapping[str, str] = KEYS) -> str | None:
    """The same of a key that does not exist in the configuration."""
    return renamed_key(key, {**renamed, **KEYS_OF_ONE_TASK})


def renamed_value(word: str) -> str | None:
    """The error message about `key=value` of an existing key whose value was renamed, None for any other word."""
    return f"{word}: this option was renamed to {OPTIONS[word]}" if word in OPTIONS else None


def renamed_option(word: str) -> str | None:
    """The error message about `group=option` whose group or option was renamed, None for any other word."""
    if (message := renamed_value(word)) is not None:
        return message
    key, _, value = word.partition("=")
    new = new_name(key.replace("/", "."))
    return None if new is None else f"{word}: was renamed to {new.replace('.', '/') if '/' in key else new}={value}"
