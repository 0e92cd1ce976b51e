"""Answering from a bundle, without torch: `Classifier(bundle).predict(frame)`."""

from edge_cl.recognition import Prediction
from edge_cl.runtime.classifier import Classifier

__all__ = ["Classifier", "Prediction"]
