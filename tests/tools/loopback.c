// Binds every server to 127.0.0.1: ferrokinesis has no option for it and would listen on all interfaces. For LD_PRELOAD.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <sys/socket.h>

int bind(int socket, const struct sockaddr *address, socklen_t size) {
  int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
  struct sockaddr_in local;
  if (address->sa_family == AF_INET && size == sizeof local) {
    local = *(const struct sockaddr_in *)address;
    local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address = (const struct sockaddr *)&local;
  }
  return next(socket, address, size);
}
