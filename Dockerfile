# Two images from one file: `scheduler` (docker build --target scheduler .) and `client`, for services and people.
FROM python:3.13-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PATH=/opt/gpuboss/bin:$PATH
RUN useradd --system --uid 10001 --create-home gpuboss

# requirements.lock pins everything, tools of development too, and an image should hold only what runs. So the lock is
# checked, hash by hash, while its files are fetched into one folder, and each image then takes from that folder, and
# from nowhere else, what its distribution asks for. One lock file, and no second list that could differ from it.
FROM base AS wheels
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY requirements.lock ./
RUN pip download --no-cache-dir --require-hashes --only-binary :all: --dest /wheels -r requirements.lock
COPY . ./
RUN pip wheel --no-index --find-links /wheels --no-deps --wheel-dir /wheels . ./scheduler

FROM base AS install-client
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python -m venv /opt/gpuboss && pip install --no-cache-dir --no-index --find-links /wheels gpuboss

FROM base AS install-scheduler
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python -m venv /opt/gpuboss && pip install --no-cache-dir --no-index --find-links /wheels gpuboss-scheduler

FROM base AS client
COPY --from=install-client /opt/gpuboss /opt/gpuboss
COPY scripts/demo_service.py /opt/gpuboss/share/demo_service.py
USER gpuboss
STOPSIGNAL SIGTERM
CMD ["gpuboss", "--help"]

FROM base AS scheduler
COPY --from=install-scheduler /opt/gpuboss /opt/gpuboss
USER gpuboss
STOPSIGNAL SIGTERM
ENTRYPOINT ["gpuboss-scheduler"]
