"""Short names for the checkpoints that people of this field use; any other Hub id works as well."""

__all__ = ["PRESETS"]

PRESETS = {
    "wav2vec2-base": "facebook/wav2vec2-base",
    "wav2vec2-base-960h": "facebook/wav2vec2-base-960h",
    "wav2vec2-large": "facebook/wav2vec2-large",
    "wav2vec2-large-robust": "facebook/wav2vec2-large-robust",
    "wav2vec2-large-xlsr-53": "facebook/wav2vec2-large-xlsr-53",
    "wav2vec2-xls-r-300m": "facebook/wav2vec2-xls-r-300m",
    "wav2vec2-xls-r-1b": "facebook/wav2vec2-xls-r-1b",
    "hubert-base": "facebook/hubert-base-ls960",
    "hubert-large": "facebook/hubert-large-ll60k",
    "hubert-xlarge": "facebook/hubert-xlarge-ll60k",
    "distilhubert": "ntu-spml/distilhubert",
    "wavlm-base": "microsoft/wavlm-base",
    "wavlm-base-plus": "microsoft/wavlm-base-plus",
    "wavlm-large": "microsoft/wavlm-large",
    "data2vec-audio-base": "facebook/data2vec-audio-base",
    "data2vec-audio-large": "facebook/data2vec-audio-large",
    "unispeech-sat-base-plus": "microsoft/unispeech-sat-base-plus",
    "unispeech-sat-large": "microsoft/unispeech-sat-large",
    "whisper-tiny": "openai/whisper-tiny",
    "whisper-tiny.en": "openai/whisper-tiny.en",
    "whisper-base": "openai/whisper-base",
    "whisper-small": "openai/whisper-small",
    "whisper-medium": "openai/whisper-medium",
    "whisper-large-v3": "openai/whisper-large-v3",
}
