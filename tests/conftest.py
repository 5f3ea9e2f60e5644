import boost_adaptbx.boost.python  # noqa
import torch  # noqa
