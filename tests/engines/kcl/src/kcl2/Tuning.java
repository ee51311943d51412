package synclake.tests;

import software.amazon.kinesis.leases.LeaseManagementConfig;

/** Settings that only KCL 2 has: none. */
final class Tuning {
  private Tuning() {}

  static void tune(LeaseManagementConfig leases) {}
}
