# The `tidings` binary in a small image, run by nobody in particular.
#   docker build --tag tidings .
#   docker run --rm --publish 7878:7878 tidings demo

FROM rust:1.95-bookworm AS build
# librdkafka is compiled from C and C++ by its own makefile, against these two libraries.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libssl-dev libzstd-dev make pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /tidings
COPY . .
# The caches outlive a build, so that a changed file does not compile 500 crates again; what is in them is not in the
# image, hence the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/tidings/target \
    cargo build --release --locked --package tidings-pipeline --bin tidings \
    && cp target/release/tidings /usr/local/bin/tidings

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 libzstd1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /var/lib/tidings --create-home --shell /usr/sbin/nologin tidings \
    && install --directory --owner tidings --group tidings /var/lib/tidings/data /var/lib/tidings/keys
COPY --from=build /usr/local/bin/tidings /usr/local/bin/tidings
COPY examples /etc/tidings
# A number, so that Kubernetes can see that it is not root.
USER 10001
# Relative paths of a topology (`./data`, `./keys`) lie here.
WORKDIR /var/lib/tidings
VOLUME ["/var/lib/tidings/data", "/var/lib/tidings/keys"]
# The admin API, `/metrics` and the demo's page.
EXPOSE 7878
# A graceful stop ends the epoch and checkpoints, so that the next start replays nothing.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tidings"]
CMD ["run", "-c", "/etc/tidings/topology.yaml", "--admin", "0.0.0.0:7878"]
