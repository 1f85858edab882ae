"""Jobs on a Ray cluster, and the working directory that a job takes along."""
