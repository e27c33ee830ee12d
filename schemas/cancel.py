"""A request to cancel a job, published to the control exchange."""

from pydantic import BaseModel, ConfigDict

from schemas.job import DEFAULT_TENANT, JobId, Tenant


class Cancel(BaseModel):
    """Names the job to cancel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: Tenant = DEFAULT_TENANT
    job_id: JobId
