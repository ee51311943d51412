package synclake.tests;

import java.io.IOException;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.awssdk.awscore.client.builder.AwsAsyncClientBuilder;
import software.amazon.awssdk.awscore.client.builder.AwsClientBuilder;
import software.amazon.awssdk.http.Protocol;
import software.amazon.awssdk.http.nio.netty.NettyNioAsyncHttpClient;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.cloudwatch.CloudWatchAsyncClient;
import software.amazon.awssdk.services.dynamodb.DynamoDbAsyncClient;
import software.amazon.awssdk.services.kinesis.KinesisAsyncClient;
import software.amazon.kinesis.common.ConfigsBuilder;
import software.amazon.kinesis.common.InitialPositionInStream;
import software.amazon.kinesis.common.InitialPositionInStreamExtended;
import software.amazon.kinesis.coordinator.Scheduler;
import software.amazon.kinesis.exceptions.InvalidStateException;
import software.amazon.kinesis.exceptions.ShutdownException;
import software.amazon.kinesis.lifecycle.events.InitializationInput;
import software.amazon.kinesis.lifecycle.events.LeaseLostInput;
import software.amazon.kinesis.lifecycle.events.ProcessRecordsInput;
import software.amazon.kinesis.lifecycle.events.ShardEndedInput;
import software.amazon.kinesis.lifecycle.events.ShutdownRequestedInput;
import software.amazon.kinesis.metrics.NullMetricsFactory;
import software.amazon.kinesis.processor.ShardRecordProcessor;
import software.amazon.kinesis.processor.SingleStreamTracker;
import software.amazon.kinesis.retrieval.KinesisClientRecord;
import software.amazon.kinesis.retrieval.polling.PollingConfig;

/**
 * An application of the Kinesis Client Library that reads a stream by a plan, until it is killed.
 *
 * <p>Arguments: stream, application, worker, URL of Kinesis, URL of DynamoDB, plan. The plan is a file of lines
 * {@code checkpoint ID} and {@code hold ID}. After the event with that ID, the application writes a checkpoint, or
 * reads no more of the shard. It checkpoints the end of each shard.
 *
 * <p>Each step is one line of JSON on standard output; see {@link #tell}. The log of the library is on standard error.
 */
public final class Application {
  private static final Pattern ID = Pattern.compile("\"identityId\":\"([^\"]+)\"");
  private static final long FAILOVER_MS = 3_000;

  private final Set<String> checkpoints;
  private final Set<String> holds;

  private Application(Path plan) throws IOException {
    checkpoints = ids(plan, "checkpoint ");
    holds = ids(plan, "hold ");
  }

  private static Set<String> ids(Path plan, String verb) throws IOException {
    try (Stream<String> lines = Files.lines(plan)) {
      return lines.filter(l -> l.startsWith(verb)).map(l -> l.substring(verb.length())).collect(Collectors.toSet());
    }
  }

  private static synchronized void tell(String step, String shard, String more) {
    System.out.printf("{\"step\":\"%s\",\"shard\":\"%s\"%s}%n", step, shard, more);
    System.out.flush();
  }

  private static String at(KinesisClientRecord record) {
    return ",\"sequence\":\"%s\",\"sub\":%d".formatted(record.sequenceNumber(), record.subSequenceNumber());
  }

  private final class Processor implements ShardRecordProcessor {
    private String shard;

    /**
     * Whether the processor ignores what follows. A hold does not block: the loop of KCL that starts the processors waits for
     * one that is in its first batch, and would start no other.
     */
    private boolean isHeld;

    @Override
    public void initialize(InitializationInput input) {
      shard = input.shardId();
      tell("begin", shard, "");
    }

    @Override
    public void processRecords(ProcessRecordsInput input) {
      int size = input.records().size();
      for (int i = 0; i < size && !isHeld; i++) {
        KinesisClientRecord record = input.records().get(i);
        Matcher matcher = ID.matcher(StandardCharsets.UTF_8.decode(record.data()));
        String id = matcher.find() ? matcher.group(1) : "";
        tell("record", shard, at(record) + ",\"id\":\"%s\",\"left_in_batch\":%d".formatted(id, size - i - 1));
        try {
          if (checkpoints.contains(id)) {
            input.checkpointer().checkpoint(record.sequenceNumber(), record.subSequenceNumber());
            tell("checkpoint", shard, at(record));
          }
          if (holds.contains(id)) {
            tell("hold", shard, at(record));
            isHeld = true;
          }
        } catch (InvalidStateException | ShutdownException error) {
          throw new IllegalStateException(error);
        }
      }
    }

    @Override
    public void leaseLost(LeaseLostInput input) {
      tell("lost", shard, "");
    }

    @Override
    public void shardEnded(ShardEndedInput input) {
      if (isHeld) {
        throw new IllegalStateException("shard " + shard + " ended after its hold");
      }
      try {
        input.checkpointer().checkpoint();
      } catch (InvalidStateException | ShutdownException error) {
        throw new IllegalStateException(error);
      }
      tell("end", shard, "");
    }

    @Override
    public void shutdownRequested(ShutdownRequestedInput input) {}
  }

  private static <B extends AwsClientBuilder<B, C> & AwsAsyncClientBuilder<B, C>, C> C client(B builder, String url) {
    return builder
        .endpointOverride(URI.create(url))
        .credentialsProvider(StaticCredentialsProvider.create(AwsBasicCredentials.create("test", "test")))
        .region(Region.US_EAST_1)
        .httpClient(NettyNioAsyncHttpClient.builder().protocol(Protocol.HTTP1_1).build())
        .build();
  }

  public static void main(String[] args) throws IOException {
    String stream = args[0];
    Application application = new Application(Path.of(args[5]));
    KinesisAsyncClient kinesis = client(KinesisAsyncClient.builder(), args[3]);
    var start = InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON);
    var configs = new ConfigsBuilder(
        new SingleStreamTracker(stream, start),
        args[1],
        kinesis,
        client(DynamoDbAsyncClient.builder(), args[4]),
        client(CloudWatchAsyncClient.builder(), args[4]),
        args[2],
        () -> application.new Processor());
    var leases = configs.leaseManagementConfig().failoverTimeMillis(FAILOVER_MS).shardSyncIntervalMillis(1_000L);
    Tuning.tune(leases);
    var coordinator = configs.coordinatorConfig().parentShardPollIntervalMillis(500).shardConsumerDispatchPollIntervalMillis(200);
    var polling = new PollingConfig(stream, kinesis).idleTimeBetweenReadsInMillis(300);
    new Scheduler(
        configs.checkpointConfig(),
        coordinator,
        leases,
        configs.lifecycleConfig(),
        configs.metricsConfig().metricsFactory(new NullMetricsFactory()),
        configs.processorConfig(),
        configs.retrievalConfig().retrievalSpecificConfig(polling))
        .run();
  }
}
