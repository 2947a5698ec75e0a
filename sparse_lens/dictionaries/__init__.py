"""Dictionaries: neurons, rotated neurons, SAE and transcoder latents behind one protocol, and the training of both."""

from sparse_lens.dictionaries.harvest import Bridge as Bridge
from sparse_lens.dictionaries.harvest import harvest_activations as harvest_activations
from sparse_lens.dictionaries.identity import IdentityDictionary as IdentityDictionary
from sparse_lens.dictionaries.measurement import DictionaryStatistics as DictionaryStatistics
from sparse_lens.dictionaries.measurement import measure_dictionary as measure_dictionary
from sparse_lens.dictionaries.protocol import Dictionary as Dictionary
from sparse_lens.dictionaries.protocol import dictionary_hash as dictionary_hash
from sparse_lens.dictionaries.protocol import skipped as skipped
from sparse_lens.dictionaries.rotation import RotationDictionary as RotationDictionary
from sparse_lens.dictionaries.rotation import random_rotation as random_rotation
from sparse_lens.dictionaries.sae_training import SAETrainingConfig as SAETrainingConfig
from sparse_lens.dictionaries.sae_training import TrainedSAE as TrainedSAE
from sparse_lens.dictionaries.sae_training import train_sae as train_sae
from sparse_lens.dictionaries.saelens import SAELensDictionary as SAELensDictionary
from sparse_lens.dictionaries.saelens_files import load_saelens as load_saelens
from sparse_lens.dictionaries.transcoder import TranscoderDictionary as TranscoderDictionary
from sparse_lens.dictionaries.transcoder_training import TranscoderTrainingConfig as TranscoderTrainingConfig
from sparse_lens.dictionaries.transcoder_training import train_transcoder as train_transcoder
