"""Whisper's encoder, on an utterance's own length or, with ``hf_compat``, in the 30 s window of the original."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jax_mtlser.architecture import WhisperArchitecture
from jax_mtlser.models.feature_encoder import Conv
from jax_mtlser.models.layers import activation, frame_mask
from jax_mtlser.models.log_mel import HOP, log_mel, warped
from jax_mtlser.models.spec_augment import spec_augment
from jax_mtlser.models.transformer import EncoderOptions, EncoderOutput, Transformer

__all__ = ["WhisperEncoder"]


class WhisperEncoder(nn.Module):
    """Log-mel spectrogram, two convolutions, positions and transformer; see speech_encoder.py for the interface.

    Whisper was trained on windows of 30 s, the audio followed by silence that its attention sees. Here frames
    behind an utterance are masked, which costs a tenth of the work for 3 s of speech; ``hf_compat`` brings the
    window back.
    """

    arch: WhisperArchitecture
    options: EncoderOptions = EncoderOptions()

    @nn.compact
    def __call__(
        self,
        audio: Float[Array, "B S"],
        lengths: Int[Array, " B"],
        *,
        train: bool,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """Encode a batch.

        Raises:
            ValueError: more samples than the position table covers.
        """
        arch, dtype, whole_window = self.arch, self.options.dtype, self.options.hf_compat
        longest = arch.max_samples()
        assert longest is not None
        if audio.shape[1] > longest:
            raise ValueError(
                f"{audio.shape[1]} samples are more than the {longest} that this encoder has positions for"
            )
        # Unlike the convolutions of the wav2vec 2.0 family, the spectrogram's windows reach behind the utterance.
        audio = jnp.where(frame_mask(lengths, audio.shape[1]), audio, 0.0)
        if whole_window:
            audio = jnp.pad(audio, ((0, 0), (0, longest - audio.shape[1])))
        mel = log_mel(audio, arch.num_mel_bins, whole_window=whole_window)
        mel_lengths = -(-lengths // HOP)
        if arch.warps_frequencies and self.has_rng("frequency_warp"):
            most = np.log1p(arch.frequency_warp)
            by_row = jax.random.uniform(self.make_rng("frequency_warp"), lengths.shape, minval=-most, maxval=most)
            mel = warped(mel, jnp.exp(by_row))
        if train and arch.apply_spec_augment and (arch.mask_time_prob > 0 or arch.mask_feature_prob > 0):
            mel = spec_augment(self.make_rng("spec_augment"), mel, mel_lengths, arch, None)

        heard = jnp.full_like(lengths, longest) if whole_window else lengths
        spectrogram_mask = frame_mask(-(-heard // HOP), mel.shape[1])
        x = _SpectrogramConvs(arch, dtype, name="feature_encoder")(mel, spectrogram_mask)
        positions = self.param("positions", _sinusoids, (arch.max_source_positions, arch.hidden_size))
        x = x + positions[None, : x.shape[1]].astype(dtype)
        x, hidden_states = Transformer(arch, self.options, name="transformer")(
            x, frame_mask(arch.num_frames(heard), x.shape[1]), train=train, output_hidden_states=output_hidden_states
        )
        frame_lengths = arch.num_frames(lengths)
        own = frame_mask(frame_lengths, x.shape[1])
        return EncoderOutput(jnp.where(own[..., None], x, 0), frame_lengths, hidden_states)


class _SpectrogramConvs(nn.Module):
    """Two convolutions of width 3, zero-padded at both ends of the utterance; the second halves the rate."""

    arch: WhisperArchitecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, mel: Float[Array, "B M F"], mask: Bool[Array, "B M"]) -> Float[Array, "B T D"]:
        activate = activation("gelu")
        x = mel.astype(self.dtype)
        for layer, stride in ((1, 1), (2, 2)):
            x = jnp.pad(jnp.where(mask[..., None], x, 0.0), ((0, 0), (1, 1), (0, 0)))
            x = activate(Conv(x.shape[-1], self.arch.hidden_size, 3, stride, True, self.dtype, name=f"conv_{layer}")(x))
        return x


def _sinusoids(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Float[Array, "T D"]:
    """Sines, then cosines, of wavelengths from 2 pi to 20,000 pi frames."""
    frames, channels = shape
    rates = np.exp(-np.log(10_000) / (channels // 2 - 1) * np.arange(channels // 2))
    angles = np.arange(frames)[:, None] * rates[None]
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), dtype)
