package synclake.tests;

import software.amazon.kinesis.leases.LeaseManagementConfig;

/** Settings that only KCL 3 has. */
final class Tuning {
  private Tuning() {}

  /** Shortens the waits: with the library's own settings the first lease takes up to a minute, a failover two. */
  static void tune(LeaseManagementConfig leases) {
    leases.leaseAssignmentIntervalMillis(1_000L);
    leases.dynamoDbLockBasedLeaderLeaseDurationInMillis(3_000);
    leases.dynamoDbLockBasedLeaderHeartbeatPeriodInMillis(1_000);
    leases.workerUtilizationAwareAssignmentConfig().workerMetricsReporterFreqInMillis(1_000);
    leases.workerUtilizationAwareAssignmentConfig().inMemoryWorkerMetricsCaptureFrequencyMillis(200);
  }
}
