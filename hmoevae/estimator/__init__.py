"""The model as a scikit-learn estimator."""

from hmoevae.errors import MissingExtraError, from_extra, mismatch

try:
    from sklearn.base import ClusterMixin
    from sklearn.utils import Tags  # scikit-learn 1.6 has it
except ImportError as missing:
    raise MissingExtraError(
        mismatch("hmoevae.VAEMixture", from_extra("scikit-learn>=1.6", "sklearn"), missing)
    ) from None

from hmoevae.estimator.mixture import VAEMixture

__all__ = ["VAEMixture"]
del ClusterMixin, Tags
