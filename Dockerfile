FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p onlooker

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home onlooker \
    && install -d -o onlooker -m 700 /var/lib/onlooker
COPY --from=build /src/target/release/onlooker /usr/local/bin/onlooker
USER onlooker
ENV ONLOOKER_DATA_DIR=/var/lib/onlooker
VOLUME /var/lib/onlooker
ENTRYPOINT ["onlooker"]
CMD ["serve"]
