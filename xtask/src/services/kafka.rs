//! Apache Kafka (KRaft, one node), from its Maven jars, broker and controller in one process.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Home, Service, Tools, connect, download};
use crate::workspace::run;

/// Pinned: what `docker-compose.yml` runs as well.
const VERSION: &str = "4.3.1";
/// Any sixteen bytes in base64; each cluster is alone on its loopback, so they need not differ.
const CLUSTER_ID: &str = "dGlkaW5ncy1zZXJ2aWNlcw";
const COPY_DEPENDENCIES: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";
/// The largest metadata answer we read: some thousand topics. Beyond it the broker counts as not answering.
const ANSWER_BYTES_MAX: usize = 1 << 20;

pub(super) struct Kafka;

impl Service for Kafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn key(&self) -> &'static str {
        "KAFKA"
    }

    fn endpoint(&self, port: u16) -> String {
        format!("127.0.0.1:{port}")
    }

    fn ports(&self) -> usize {
        2 // clients, controller
    }

    fn install(&self, tools: &Tools) -> Result<()> {
        download(&folder(tools), |partial| {
            fs::write(partial.join("pom.xml"), pom()).context("cannot write the list of jars")?;
            run(Command::new("mvn")
                .args(["--quiet", "--batch-mode", COPY_DEPENDENCIES, "-DincludeScope=runtime"])
                .arg(format!("-DoutputDirectory={}", partial.join("libs").display()))
                .current_dir(partial)
                .stdout(std::io::stderr()))
        })
    }

    fn prepare(&self, tools: &Tools, home: &Home) -> Result<Command> {
        let config = home.folder.join("server.properties");
        fs::write(&config, server_properties(home)).context("cannot write its configuration")?;
        if !home.data().join("meta.properties").exists() {
            let mut format = java(tools);
            format.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"]).arg(&config);
            run(format.stdout(fs::File::create(home.folder.join("format.log"))?)).context("cannot format its data")?;
        }
        let mut command = java(tools);
        command.arg("kafka.Kafka").arg(config);
        Ok(command)
    }

    fn ask(&self, port: u16) -> Result<()> {
        let brokers = brokers(port)?;
        if brokers < 1 {
            bail!("it knows no broker yet");
        }
        Ok(())
    }
}

fn folder(tools: &Tools) -> PathBuf {
    tools.cache.join(format!("kafka-{VERSION}"))
}

fn java(tools: &Tools) -> Command {
    let mut command = Command::new("java");
    command.args(["-Xmx1g", "-Xms256m", "-cp"]).arg(folder(tools).join("libs/*"));
    command
}

fn pom() -> String {
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>\n"
        )
    };
    [
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n<modelVersion>4.0.0</modelVersion>\n",
        "<groupId>tidings</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>\n",
        "<dependencies>\n",
        &dependency("org.apache.kafka", "kafka_2.13", VERSION),
        &dependency("org.apache.kafka", "kafka-tools", VERSION),
        &dependency("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.3"),
        "</dependencies>\n</project>\n",
    ]
    .concat()
}

/// The two session lines let a broker that was killed come back in 4 s; with the defaults its old registration must
/// run out first, which takes 13 s. The cleaner's buffer is sized for tests: the default takes 128 MB.
fn server_properties(home: &Home) -> String {
    let (clients, controller) = (home.ports[0], home.ports[1]);
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{clients}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.cleaner.dedupe.buffer.size=4194304
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
",
        data = home.data().display()
    )
}

/// Asks for metadata, as every client does first, and returns how many brokers the answer names.
fn brokers(port: u16) -> Result<i32> {
    let mut stream = connect(port)?;
    stream.write_all(&metadata_request()).context("no request accepted")?;
    let mut size = [0; 4];
    stream.read_exact(&mut size).context("no answer")?;
    let size = usize::try_from(i32::from_be_bytes(size)).context("an answer of negative size")?;
    if size > ANSWER_BYTES_MAX {
        bail!("an answer of {size} bytes");
    }
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer).context("half an answer")?;
    parse_brokers(&answer).context("an answer that is no metadata")
}

const CORRELATION: i32 = 0x7469_6469;

/// Metadata (api key 3), version 1: the oldest that lists brokers and no topics.
fn metadata_request() -> Vec<u8> {
    let client = b"xtask";
    let mut body = Vec::new();
    body.extend(3_i16.to_be_bytes());
    body.extend(1_i16.to_be_bytes());
    body.extend(CORRELATION.to_be_bytes());
    body.extend((client.len() as i16).to_be_bytes());
    body.extend(client);
    body.extend(0_i32.to_be_bytes()); // an empty list of topics: none
    let mut request = (body.len() as i32).to_be_bytes().to_vec();
    request.extend(body);
    request
}

/// The answer begins with our correlation id and the number of brokers.
fn parse_brokers(answer: &[u8]) -> Option<i32> {
    let (correlation, rest) = answer.split_first_chunk()?;
    let (brokers, _) = rest.split_first_chunk()?;
    (i32::from_be_bytes(*correlation) == CORRELATION).then_some(i32::from_be_bytes(*brokers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_request_has_golden_bytes() {
        let expected = b"\0\0\0\x13\0\x03\0\x01tidi\0\x05xtask\0\0\0\0";
        assert_eq!(metadata_request(), expected);
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        assert_eq!(parse_brokers(b"tidi\0\0\0\x01\0\0\0\x01"), Some(1));
        assert_eq!(parse_brokers(b"tide\0\0\0\x01\0\0\0\x01"), None);
        assert_eq!(parse_brokers(b"tidi\0\0"), None);
    }
}
