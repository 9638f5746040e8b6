"""What others report, each with the public source in which we read it; a figure that we have not read is not here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """A result from elsewhere, as fractions; `None` where the source doesn't say.

    Attributes:
        dataset: As `clustering.py` calls it.
        what: Name of the method.
        source: Where we read it.
        note: What to know before comparing.
        accuracy: Share of samples under the best one-to-one match.
        accuracy_sd: Its standard deviation over runs.
        nmi: Normalised mutual information.
        dendrogram_purity: Of the whole tree.
    """

    dataset: str
    what: str
    source: str
    note: str
    accuracy: float | None = None
    accuracy_sd: float | None = None
    nmi: float | None = None
    dendrogram_purity: float | None = None


DEC = ("github.com/XifengGuo/DEC-keras, README", "mean of 10 runs, all 70,000 images")
DEC_DA = ("github.com/XifengGuo/DEC-DA, README", "augmented, all 70,000 images")
MFCVAE = ("github.com/FabianFalck/mfcvae, README", "10 runs, 25 clusters")
N2D = ("paperswithcode.com, page of N2D", "all 70,000 images")
TREE_VAE = ("wizwand.com, page of Tree Variational Autoencoders", "as collected there from the paper")
VADE = ("github.com/slim1017/VaDE, README", "released weights")

PUBLISHED = (
    Published("mnist", "k-means on pixels", *DEC, accuracy=0.53, nmi=0.50),
    Published("mnist", "auto-encoder, k-means", *DEC, accuracy=0.88, nmi=0.81),
    Published("mnist", "DEC", *DEC, accuracy=0.91, nmi=0.87),
    Published("mnist", "MFCVAE", *MFCVAE, accuracy=0.9202, accuracy_sd=0.0302),
    Published("mnist", "VaDE", *VADE, accuracy=0.9446),
    Published("mnist", "DEC-DA", *DEC_DA, accuracy=0.985, nmi=0.960),
    Published("mnist", "N2D", *N2D, accuracy=0.987, nmi=0.964),
    Published("mnist", "TreeVAE", *TREE_VAE, dendrogram_purity=0.879),
    Published("fashion", "k-means on pixels", *DEC, accuracy=0.47, nmi=0.51),
    Published("fashion", "auto-encoder, k-means", *DEC, accuracy=0.61, nmi=0.64),
    Published("fashion", "DEC", *DEC, accuracy=0.62, nmi=0.65),
    Published("fashion", "DEC-DA", *DEC_DA, accuracy=0.586, nmi=0.636),
    Published("fashion", "N2D", *N2D, accuracy=0.672, nmi=0.684),
)
